"""SeeDNorm: RMSNorm whose gain depends on the input.

    y = (γ + α · tanh⟨x, β⟩) ⊙ x / rms(x)

With ``num_heads`` = n, x and β are cut into n contiguous slices and each slice has a scalar of its own:
s_h = tanh⟨x_h, β_h⟩ multiplies α on slice h; rms stays over the whole vector. At the start γ = 1, α = ``alpha``,
β = 0: RMSNorm exactly. The inner product takes x as it comes, not normalised, so that its norm is not lost.

Cai, Zhu, Liu, Min, 2025, arXiv:2510.22777.
"""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.kernels import fused
from assay.nn.norm import norms
from assay.nn.norm.rms_norm import rms_normalize


@fused
def seednorm(
    x: Float[Tensor, "*batch hidden"],
    weight: Float[Tensor, " hidden"],
    alpha: Float[Tensor, " hidden"],
    beta: Float[Tensor, " hidden"],
    num_heads: int,
    eps: float,
) -> Float[Tensor, "*batch hidden"]:
    """(γ + α tanh⟨x_h, β_h⟩) ⊙ x / √(mean(x²) + eps) on each slice h, in float32 at least, rounded as x is."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scores = (wide * beta).unflatten(-1, (num_heads, -1)).sum(-1)
    gate = torch.tanh(scores).repeat_interleave(x.shape[-1] // num_heads, dim=-1)
    return ((weight + alpha * gate) * rms_normalize(x, eps)).to(x.dtype)


@norms.register("seednorm")
class SeeDNorm(nn.Module):
    """``alpha`` is where α starts; at 0 neither α nor β would ever learn.

    Raises ``UserError`` if ``num_heads`` does not divide ``hidden_size``.

    The paper decays α and β but not γ: ``weight_decay_parameters`` tells the optimizer so.
    """

    weight_decay_parameters = frozenset({"alpha", "beta"})

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int = 1,
        alpha: Annotated[float, Field(gt=0)] = 1.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise UserError(
                f"norm 'seednorm': num_heads={num_heads} does not divide {hidden_size}; it must be a divisor"
            )
        self.num_heads = num_heads
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.alpha = nn.Parameter(torch.full((hidden_size,), alpha))
        self.beta = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return seednorm(x, self.weight, self.alpha, self.beta, self.num_heads, self.eps)
