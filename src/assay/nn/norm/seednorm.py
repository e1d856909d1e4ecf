"""SeeDNorm: RMSNorm whose gain depends on the input.

    y = (γ + α · tanh⟨x, β⟩) ⊙ x / rms(x)

With ``num_heads`` = n, x and β are cut into n contiguous slices and each slice has a scalar of its own:
s_h = tanh⟨x_h, β_h⟩ multiplies α on slice h; rms stays over the whole vector. At the start γ = 1, α = 1,
β = 0: RMSNorm exactly. The inner product takes x as it comes, not normalised, so that its norm is not lost.

Cai, Zhu, Liu, Min, 2025, arXiv:2510.22777.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.norm import norms
from assay.nn.norm.rms_norm import rms_normalize


@norms.register("seednorm")
class SeeDNorm(nn.Module):
    """Raises ``UserError`` if ``num_heads`` does not divide ``hidden_size``.

    The paper decays α and β but not γ: ``weight_decay_parameters`` tells the optimizer so.
    """

    weight_decay_parameters = frozenset({"alpha", "beta"})

    def __init__(self, hidden_size: int, *, num_heads: int = 1, eps: float = 1e-6) -> None:
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise UserError(
                f"norm 'seednorm': num_heads={num_heads} does not divide {hidden_size}; it must be a divisor"
            )
        self.num_heads = num_heads
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.alpha = nn.Parameter(torch.ones(hidden_size))
        self.beta = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scores = (wide * self.beta).unflatten(-1, (self.num_heads, -1)).sum(-1)
        gate = torch.tanh(scores).repeat_interleave(x.shape[-1] // self.num_heads, dim=-1)
        return ((self.weight + self.alpha * gate) * rms_normalize(x, self.eps)).to(x.dtype)
