"""Training losses: called with logits and targets, they return one number in nats.

Targets of −100 do not count. A loss may ask for more by having one or both of these methods:

    read(inputs)                         called under the run's precision; the loss is then called with logits,
                                         targets and what this returns
    begin_step(model, step, progress)    called once before each step, however many micro-batches it has

What it keeps as buffers or modules is saved with the model, under ``loss.``; ``model``, where a constructor takes it
before the ``*``, is the freshly initialised network.
"""

from __future__ import annotations

from torch import nn

from assay.registry import Registry

losses: Registry[nn.Module] = Registry("loss", __name__)
