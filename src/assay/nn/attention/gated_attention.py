"""Gated attention: each head's result is multiplied by a sigmoid of the layer's input.

    O_h ← O_h ⊙ σ(x W_g)_h,    y = concat(O_1 .. O_H) W_O

``granularity`` "elementwise" has one gate per feature of a head, "headwise" one per head. The gate belongs to
the querying token, sees the same (normed) input as the queries, and has no rotation. Drawn like every other
weight, gates start near ½.

Qiu et al., 2025, arXiv:2505.06708 (position G1, multiplicative, head-specific).
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.attention.softmax import SoftmaxAttention
from assay.nn.mixer import mixers
from assay.nn.norm import NormFactory


@mixers.register("gated-attention")
class GatedAttention(SoftmaxAttention):
    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        layer: int,
        norm: NormFactory,
        *,
        granularity: Literal["elementwise", "headwise"] = "elementwise",
        qkv_bias: bool = False,
        output_bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(
            hidden_size,
            num_heads,
            num_kv_heads,
            head_dim,
            layer,
            norm,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            qk_norm=qk_norm,
        )
        self.gates_per_head = head_dim if granularity == "elementwise" else 1
        self.gate_projection = nn.Linear(hidden_size, num_heads * self.gates_per_head, bias=qkv_bias)

    def gate(
        self, mixed: Float[Tensor, "batch time heads dim"], x: Float[Tensor, "batch time hidden"]
    ) -> Float[Tensor, "batch time heads dim"]:
        return mixed * self.gate_projection(x).unflatten(-1, (-1, self.gates_per_head)).sigmoid()
