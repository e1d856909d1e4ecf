"""Activation outliers in the residual stream, relative to the root mean square of their token.

    r_lti = |x_lti| / rms(x_lt)    for layer l, token t, feature i
    peak  = max over l, t, i of r_lti                       a massive activation
    sink  = max over l, i of the mean over t of r_lti       a residual sink: a feature large on all tokens

Both lie between 1 and √(number of features).
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from assay.claims.properties import properties
from assay.claims.streams import after_each_layer
from assay.models import Decoder
from assay.nn.norm.rms_norm import rms_normalize


@properties.register("activation-outliers")
def activation_outliers(model: Decoder, ids: Int[Tensor, "batch time"]) -> dict[str, float]:
    """``peak`` and ``sink``."""
    found = after_each_layer(model, ids, _of_stream)
    return {"peak": max(peak for peak, _ in found), "sink": max(sink for _, sink in found)}


def _of_stream(x: Float[Tensor, "batch time hidden"]) -> tuple[float, float]:
    relative = rms_normalize(x, 0.0).abs()
    return relative.max().item(), relative.mean((0, 1)).max().item()
