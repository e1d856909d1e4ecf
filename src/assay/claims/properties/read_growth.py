"""Read growth: how much larger the vectors are that deep layers read than those that the second layer reads.

    m_l = mean over tokens of rms(h_l),  h_l what the mixer of layer l reads from the residual stream, before its norm
    growth = m_L / m_2,    peak = max_l m_l / m_2

The first layer reads the embedding alone and says nothing about the stream.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Int
from torch import Tensor

from assay.claims.properties import properties
from assay.errors import UserError
from assay.models import Decoder


@properties.register("read-growth")
@torch.no_grad()
def read_growth(model: Decoder, ids: Int[Tensor, "batch time"]) -> dict[str, float]:
    """``growth`` and ``peak``. Raises ``UserError`` for a decoder of fewer than two layers."""
    if len(model.layers) < 2:
        raise UserError("the property 'read-growth' needs a decoder of two layers or more")
    sizes: dict[int, float] = {}
    read = model.residual.read

    def measure(state: Any, sublayer: int) -> Tensor:
        x = read(state, sublayer)
        sizes[sublayer] = x.double().square().mean(-1).sqrt().mean().item()
        return x

    with patch.object(model.residual, "read", measure):
        model.hidden(ids)
    second, *others = [sizes[2 * layer] for layer in range(1, len(model.layers))]
    deepest = others[-1] if others else second
    return {"growth": deepest / second, "peak": max([second, *others]) / second}
