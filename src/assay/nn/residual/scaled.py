"""Scaled residual: constant weights on the stream and on the branch.

    x ← a · x + b · F(x)

``branch`` b may be ``"depth"``: 1/√n for n sublayers, which keeps the variance of a sum of independent branches at
the size of one, or ``"inverse-depth"``: 1/n, which does so for branches that agree (Dherin, Munn, 2025,
arXiv:2510.03470). ``learned`` makes b a trained vector, started at that constant, as in ReZero and
LayerScale (Bachlechner et al., 2020, arXiv:2003.04887; Touvron et al., 2021, arXiv:2103.17239).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.residual import ResidualStream, residuals


@residuals.register("scaled")
class ScaledResidual(ResidualStream):
    def __init__(
        self,
        hidden_size: int,
        num_sublayers: int,
        *,
        skip: float = 1.0,
        branch: float | Literal["depth", "inverse-depth"] = "depth",
        learned: bool = False,
    ) -> None:
        super().__init__()
        self.skip = skip
        rules = {"depth": num_sublayers**-0.5, "inverse-depth": 1 / num_sublayers}
        self.branch = rules[branch] if isinstance(branch, str) else float(branch)
        start = torch.full((hidden_size,), self.branch)
        self.gains = nn.ParameterList(start.clone() for _ in range(num_sublayers)) if learned else None

    def write(
        self, state: Float[Tensor, "batch time hidden"], y: Float[Tensor, "batch time hidden"], sublayer: int
    ) -> Float[Tensor, "batch time hidden"]:
        gain = self.branch if self.gains is None else self.gains[sublayer]
        return self.skip * state + gain * y
