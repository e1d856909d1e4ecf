"""Training losses: called with logits and targets, they return one number in nats.

Targets of −100 do not count.
"""

from __future__ import annotations

from torch import nn

from assay.registry import Registry

losses: Registry[nn.Module] = Registry("loss", __name__)
