"""Residual growth: the variance of the residual stream over the layers.

    v_l = mean over tokens of var(x_l) over the features,    growth = v_L / v_1

for the stream x_l after layer l of L.
"""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from assay.claims.properties import properties
from assay.claims.streams import after_each_layer
from assay.models import Decoder


@properties.register("residual-growth")
def residual_growth(model: Decoder, ids: Int[Tensor, "batch time"]) -> dict[str, float]:
    """``first`` and ``last`` are v_1 and v_L, ``growth`` their ratio."""
    variances = after_each_layer(model, ids, lambda x: x.var(-1, correction=0).mean().item())
    first, last = variances[0], variances[-1]
    return {"first": first, "last": last, "growth": last / first}
