"""Multi-head attention.

    O_h = softmax(Q_h K_hᵀ / √d + mask) V_h,    y = concat(O_1 .. O_H) W_O

``num_kv_heads`` < ``num_heads`` shares each key and value head among a group of query heads.
Vaswani et al., 2017, arXiv:1706.03762; grouped queries: Ainslie et al., 2023, arXiv:2305.13245; normed
queries and keys: Henry et al., 2020, arXiv:2010.04245.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.mixer import Cache, mixers
from assay.nn.norm import NormFactory
from assay.nn.position import Positions


@mixers.register("softmax")
class SoftmaxAttention(nn.Module):
    """Biases on the projections and norms on queries and keys are off by default."""

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
        self.layer = layer
        self.head_dim = head_dim
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
        query = self.heads(self.query(x), self.query_norm, positions)
        key = self.heads(self.key(x), self.key_norm, positions)
        value = self.heads(self.value(x))
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=positions.mask,
            is_causal=positions.mask is None,
            enable_gqa=self.grouped,
        )
        return self.output(self.gate(mixed.transpose(1, 2), x).flatten(2))

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

    def gate(
        self, mixed: Float[Tensor, "batch time heads dim"], x: Float[Tensor, "batch time hidden"]
    ) -> Float[Tensor, "batch time heads dim"]:
        """What happens to each head's result before the output projection; here nothing."""
        return mixed
