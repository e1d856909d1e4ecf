"""Properties: functions of a model, for claims about what training does to it.

A property takes what it asks for of ``(model, ids, config)``: the ``Decoder`` in evaluation mode, token ids of shape
(batch, time) from the validation text, and the run's configuration; options follow the ``*``. It returns numbers by
name::

    @properties.register("residual-growth")
    def residual_growth(model: Decoder, ids: Int[Tensor, "batch time"]) -> dict[str, float]: ...
"""

from __future__ import annotations

from assay.registry import Registry

properties: Registry[dict[str, float]] = Registry("property", __name__)
