"""SwiGLU: y = (silu(x W_g) ⊙ x W_u) W_d. Shazeer, 2020, arXiv:2002.05202."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.mlp import mlps


@mlps.register("swiglu")
class SwiGLU(nn.Module):
    expansion = 8 / 3
    input_maps = ("gate", "up")

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))
