"""RMSNorm.

    y = γ ⊙ x / rms(x),    rms(x) = √(mean(x²) + ε)

Zhang, Sennrich, 2019, arXiv:1910.07467.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.kernels import fused
from assay.nn.norm import norms


def rms_normalize(x: Float[Tensor, "*batch hidden"], eps: float) -> Float[Tensor, "*batch hidden"]:
    """x / √(mean(x²) + eps) over the last dimension, in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


@fused
def rms_norm(
    x: Float[Tensor, "*batch hidden"], weight: Float[Tensor, " hidden"], eps: float
) -> Float[Tensor, "*batch hidden"]:
    """γ ⊙ x / √(mean(x²) + eps), where x / √(…) is rounded to the precision of x."""
    return weight * rms_normalize(x, eps).to(x.dtype)


@norms.register("rms-norm")
class RMSNorm(nn.Module):
    """γ ⊙ x / rms(x), with γ initialised to 1; ``gain=False`` leaves γ out."""

    def __init__(self, hidden_size: int, *, eps: float = 1e-6, gain: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size)) if gain else None

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        if self.weight is None:
            return rms_normalize(x, self.eps).to(x.dtype)
        return rms_norm(x, self.weight, self.eps)
