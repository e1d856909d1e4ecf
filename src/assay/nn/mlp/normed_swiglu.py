"""SwiGLU with a norm before its non-linearity: y = (silu(N(x W_g)) ⊙ x W_u) W_d, with N(z) = γ ⊙ z / rms(z).

The norm is over the intermediate features, so that y does not change with the size of W_g, which has no bias either.
Lyle, Zheng, Khetarpal, Martens, van Hasselt, Pascanu, Dabney, 2024, arXiv:2407.01800.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.mlp import mlps
from assay.nn.norm.rms_norm import RMSNorm


@mlps.register("normed-swiglu")
class NormedSwiGLU(nn.Module):
    """``gain=False`` leaves γ out."""

    expansion = 8 / 3
    input_maps = ("gate", "up")

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, bias: bool = False, gain: bool = True, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.norm = RMSNorm(intermediate_size, eps=eps, gain=gain)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return self.down(F.silu(self.norm(self.gate(x))) * self.up(x))
