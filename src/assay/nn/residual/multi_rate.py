"""Multi-rate residual: each token moves through the depth at a rate of its own.

    x ← x + r(x) · F(x),    r(x) = slow + (fast − slow) · σ⟨w, x / rms(x)⟩

A mixture of two residual rates, weighted token by token with one vector w per sublayer. w starts at 0, where the rate
is (slow + fast) / 2: with the defaults 1, the plain stream exactly.

After the idea of Bhendawade, Najibi, Naik, Belousova, 2025, arXiv:2502.02040, that tokens should differ in the
velocity of their residual, not in the distance that they travel. The paper's own streams are trained beside a
finished model (``assay.models.accelerated_stream``); that a network learns its rates from scratch, by this gate, is
inferred.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.norm.rms_norm import rms_normalize
from assay.nn.residual import ResidualStream, residuals


@residuals.register("multi-rate")
class MultiRateResidual(ResidualStream):
    def __init__(
        self, hidden_size: int, num_sublayers: int, *, slow: float = 0.5, fast: float = 1.5, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.slow, self.fast, self.eps = slow, fast, eps
        self.gates = nn.ParameterList(torch.zeros(hidden_size) for _ in range(num_sublayers))

    def write(
        self, state: Float[Tensor, "batch time hidden"], y: Float[Tensor, "batch time hidden"], sublayer: int
    ) -> Float[Tensor, "batch time hidden"]:
        return state + self.rate(state, sublayer).to(y.dtype) * y

    def rate(self, x: Float[Tensor, "batch time hidden"], sublayer: int) -> Float[Tensor, "batch time 1"]:
        """r(x) of each token at one sublayer."""
        score = (rms_normalize(x, self.eps) * self.gates[sublayer]).sum(-1, keepdim=True)
        return self.slow + (self.fast - self.slow) * torch.sigmoid(score)
