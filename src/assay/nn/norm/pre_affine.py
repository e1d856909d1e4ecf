"""PreAffine: RMSNorm of a learned multiple of its input.

    y = γ ⊙ u / rms(u),    u = λ ⊙ x

A large λ_j makes feature j count in the root mean square as an outlier would, so that the network need not grow one:
λ takes the residual sink into a parameter. γ and λ start at 1, which is RMSNorm.

Qiu et al., 2026, arXiv:2601.22966.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.norm import norms
from assay.nn.norm.rms_norm import RMSNorm


@norms.register("pre-affine")
class PreAffine(RMSNorm):
    def __init__(self, hidden_size: int, *, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, eps=eps)
        self.input_scale = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return super().forward(self.input_scale * x)
