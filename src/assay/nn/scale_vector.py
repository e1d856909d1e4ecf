"""Scale vectors: the gains of norms and of linear maps, in one of three forms.

    vector           γ
    scalar*vector    γ = β α    with a number β, the magnitude, and a vector α, the direction
    vector*vector    γ = β ⊙ α

All factors start at 1. Under a gradient flow γ moves along −P ∂L/∂γ with P = I, P = β² I + α αᵀ and
P = diag(α² + β²): the forms have the same values and differ in how they learn.

Wang et al., 2026, arXiv:2605.26895.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Form = Literal["vector", "scalar*vector", "vector*vector"]


class ScaleVector(nn.Module):
    """A gain of ``size`` features. With ``decay`` the optimizer decays its factors, towards 0."""

    def __init__(self, size: int, form: Form = "vector", *, decay: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.magnitude: nn.Parameter | None = None
        if form != "vector":
            self.magnitude = nn.Parameter(torch.ones(1 if form == "scalar*vector" else size))
        self.weight_decay_parameters = frozenset({"weight", "magnitude"} if decay else ())

    def forward(self) -> Float[Tensor, " size"]:
        """γ."""
        return self.weight if self.magnitude is None else self.magnitude * self.weight
