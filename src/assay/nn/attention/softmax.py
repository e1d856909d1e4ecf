"""Multi-head attention.

    O_h = softmax(Q_h K_hᵀ / √d + mask) V_h,    y = concat(O_1 .. O_H) W_O

``num_kv_heads`` < ``num_heads`` shares each key and value head among a group of query heads.
Vaswani et al., 2017, arXiv:1706.03762; grouped queries: Ainslie et al., 2023, arXiv:2305.13245; normed
queries and keys: Henry et al., 2020, arXiv:2010.04245.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.nn.mixer import Cache, mixers
from assay.nn.norm import NormFactory
from assay.nn.position import Positions

Place = Literal["query", "key", "value", "attention", "output"]
"""Of what is computed on the way: the projections, the heads' results side by side, and the layer's output."""


@mixers.register("softmax")
class SoftmaxAttention(nn.Module):
    """Biases on the projections and norms on queries and keys are off by default."""

    input_maps: tuple[str, ...] = ("query", "key", "value")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        layer: int,
        norm: NormFactory,
        *,
        qkv_bias: bool = False,
        output_bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads, self.num_kv_heads, self.head_dim = (
            hidden_size,
            num_heads,
            num_kv_heads,
            head_dim,
        )
        self.layer = layer
        self.grouped = num_kv_heads < num_heads
        self.query = nn.Linear(hidden_size, num_heads * head_dim, bias=qkv_bias)
        self.key = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.value = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.output = nn.Linear(num_heads * head_dim, hidden_size, bias=output_bias)
        self.query_norm = norm(head_dim) if qk_norm else None
        self.key_norm = norm(head_dim) if qk_norm else None

    def forward(
        self, x: Float[Tensor, "batch time hidden"], positions: Positions, cache: Cache | None = None
    ) -> Float[Tensor, "batch time hidden"]:
        query, key, value = self.project(x, positions)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        mixed = self.mix(x, query, key, value, positions.mask)
        return self.gate("output", self.output(self.gate("attention", mixed.transpose(1, 2).flatten(2), x)), x)

    def project(
        self, x: Float[Tensor, "batch time hidden"], positions: Positions
    ) -> tuple[
        Float[Tensor, "batch heads time dim"],
        Float[Tensor, "batch kv_heads time dim"],
        Float[Tensor, "batch kv_heads time dim"],
    ]:
        """Queries, keys and values of new tokens, normed and rotated where that is asked for."""
        query = self.heads(self.gate("query", self.query(x), x), self.query_norm, positions)
        key = self.heads(self.gate("key", self.key(x), x), self.key_norm, positions)
        return query, key, self.heads(self.gate("value", self.value(x), x))

    def heads(
        self,
        x: Float[Tensor, "batch time features"],
        norm: nn.Module | None = None,
        positions: Positions | None = None,
    ) -> Float[Tensor, "batch heads time dim"]:
        """Cut into heads, then normed and rotated where that is asked for."""
        cut = x.unflatten(-1, (-1, self.head_dim))
        if norm is not None:
            cut = norm(cut)
        cut = cut.transpose(1, 2)
        return cut if positions is None else positions.rotate(cut)

    def mix(
        self,
        x: Float[Tensor, "batch time hidden"],
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        value: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Float[Tensor, "batch heads time dim"]:
        """Each head's mixture of the values: ``weights`` times values, which need not be in memory for it."""
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=self.grouped
        )

    def weights(
        self,
        x: Float[Tensor, "batch time hidden"],
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Float[Tensor, "batch heads time keys"]:
        """What ``mix`` multiplies the values with, for measurements."""
        return self.scores(query, key).masked_fill(~self.seen(query, key, mask), -torch.inf).softmax(-1)

    def scores(
        self, query: Float[Tensor, "batch heads time dim"], key: Float[Tensor, "batch kv_heads keys dim"]
    ) -> Float[Tensor, "batch heads time keys"]:
        """Q Kᵀ / √d, without a mask."""
        return query @ shared(key, query.shape[1]).mT * self.head_dim**-0.5

    def seen(
        self,
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Bool[Tensor, "#batch #heads time keys"]:
        """Which keys each query of each head may see: the mask, and where it is None all up to its own."""
        if mask is not None:
            return mask
        return torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()

    def gate(
        self, place: Place, y: Float[Tensor, "batch time features"], x: Float[Tensor, "batch time hidden"]
    ) -> Float[Tensor, "batch time features"]:
        """What happens to ``y``, which is computed at that place from the layer's input ``x``; here nothing."""
        return y


def shared(x: Float[Tensor, "batch kv_heads keys dim"], num_heads: int) -> Float[Tensor, "batch heads keys dim"]:
    """Keys or values for each query head: those of its group."""
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)
