"""GELU: y = gelu(x W_u) W_d. Hendrycks, Gimpel, 2016, arXiv:1606.08415."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.mlp import mlps


@mlps.register("gelu")
class GELU(nn.Module):
    """``approximate="tanh"`` is the form of GPT-2; ``"none"`` the exact one."""

    expansion = 4.0
    input_maps = ("up",)

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        bias: bool = False,
        approximate: Literal["none", "tanh"] = "none",
    ) -> None:
        super().__init__()
        self.approximate = approximate
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))
