"""Squared ReLU: y = max(x W_u, 0)² W_d. So et al., 2021 (Primer), arXiv:2109.08668."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.mlp import mlps


@mlps.register("relu2")
class ReLU2(nn.Module):
    expansion = 4.0
    input_maps = ("up",)

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return self.down(F.relu(self.up(x)).square())
