"""How large the logits of attention are before the softmax.

    largest = max over layers, heads, queries i and the keys j that i sees, of |⟨q_i, k_j⟩| / √d

Large logits come with loss spikes and divergence: Zhai et al., 2023, arXiv:2303.06296.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.claims.properties import properties
from assay.claims.properties.attention_sink import at_every_attention
from assay.models import Decoder
from assay.nn.attention.softmax import SoftmaxAttention
from assay.nn.position import Positions


@properties.register("attention-logits")
def attention_logits(model: Decoder, ids: Int[Tensor, "batch time"]) -> dict[str, float]:
    """``largest``, and ``typical``: the median over layers and heads of their largest."""
    found = largest_logits(model, ids)
    return {"largest": found.max().item(), "typical": found.median().item()}


def largest_logits(model: Decoder, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "layers heads"]:
    def largest(attention: SoftmaxAttention, x: Tensor, positions: Positions) -> Tensor:
        query, key, _ = attention.project(x, positions)
        unseen = ~attention.seen(query, key, positions.mask)
        return attention.scores(query, key).abs().masked_fill(unseen, 0.0).amax((0, 2, 3))

    return torch.stack(at_every_attention(model, ids, largest))
