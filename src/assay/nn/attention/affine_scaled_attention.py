"""Affine-scaled attention: softmax weights times a gate, plus a uniform weight that keeps their level.

    a_i = φ(⟨w_h, x_i⟩),    w_ij = a_i P_ij + (ā − a_i) / n_i,    O_i = Σ_j w_ij v_j

P are the softmax weights, n_i is the number of keys that query i sees, and ā is a running mean of the gates over
training, one per head: ā ← ρ ā + (1 − ρ) mean(a), without gradient, from 0. The weights of a query sum to ā and may
be negative. φ is clip(z / 10 + ½, 0, 1) or a sigmoid. Without the weights in memory,

    O_i = a_i · softmax attention_i + (ā − a_i) · mean of the values that i sees

``length`` puts one number in place of n_i, such as the training length; the sum of a query's weights then depends on
how many keys it sees. Under data parallelism ā follows the rows of the first process.

Bae et al., 2026, arXiv:2602.23057.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from assay.nn.attention.softmax import SoftmaxAttention, shared
from assay.nn.mixer import mixers


@mixers.register("affine-scaled-attention")
class AffineScaledAttention(SoftmaxAttention):
    input_maps = (*SoftmaxAttention.input_maps, "scale_projection")
    mean: Tensor

    def __init__(
        self,
        *context: Any,
        activation: Literal["clip", "sigmoid"] = "clip",
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        length: Annotated[int, Field(gt=0)] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*context, **options)
        self.activation, self.momentum, self.length = activation, momentum, length
        self.scale_projection = nn.Linear(self.hidden_size, self.num_heads, bias=False)
        self.register_buffer("mean", torch.zeros(self.num_heads))

    def mix(
        self,
        x: Float[Tensor, "batch time hidden"],
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        value: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Float[Tensor, "batch heads time dim"]:
        scale = self.scale(x)
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(scale.mean((0, 2, 3)).to(self.mean.dtype), 1 - self.momentum)
        uniform = shared(self.average(value, mask, query.shape[2]), query.shape[1])
        mixed = super().mix(x, query, key, value, mask)
        return scale * mixed + self.rest(scale) * uniform

    def weights(
        self,
        x: Float[Tensor, "batch time hidden"],
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Float[Tensor, "batch heads time keys"]:
        scale, seen = self.scale(x), self.seen(query, key, mask)
        uniform = seen.to(scale.dtype) / (self.length or seen.sum(-1, keepdim=True))
        return scale * super().weights(x, query, key, mask) + self.rest(scale) * uniform

    def scale(self, x: Float[Tensor, "batch time hidden"]) -> Float[Tensor, "batch heads time 1"]:
        """a_i of each head."""
        z = self.scale_projection(x).mT[..., None]
        return z.sigmoid() if self.activation == "sigmoid" else (0.1 * z + 0.5).clamp(0, 1)

    def rest(self, scale: Float[Tensor, "batch heads time 1"]) -> Float[Tensor, "batch heads time 1"]:
        """ā − a_i."""
        return self.mean[:, None, None].to(scale.dtype) - scale

    def average(
        self,
        value: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
        time: int,
    ) -> Float[Tensor, "batch kv_heads time dim"]:
        """The sum of the values that each query sees, divided by their number, or by ``length``."""
        if mask is None:
            wide = torch.promote_types(value.dtype, torch.float32)
            total = value[:, :, :time].cumsum(2, dtype=wide).to(value.dtype)
            number = torch.arange(1, time + 1, device=value.device)[:, None]
        else:
            total, number = mask.to(value.dtype) @ value, mask.sum(-1, keepdim=True)
        return total / (self.length or number)
