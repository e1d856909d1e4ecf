"""Multiplicative diffusion: noise that scales positive data, and samplers that scale it back.

    x_t = x_0 · exp((μ − σ²/2) t + σ √t z)                                  geometric Brownian motion, 0 < t ≤ 1
    h(x, t) = x · ∂ log p_t(x),    h(x_t | x_0) = −1 − z / (σ √t)             the score that it takes
    L = E Σ (σ² t)² (x_t · s(x_t, t) − h(x_t | x_0))²                       M-DSM, s learns ∂ log p_t

    x ← x · exp(δσ² x·s − δ (μ − 3/2 σ²) + a √δ σ z)                        Dale-Langevin sampler (DLS)
    x ← x · (1 + 2δσ² − δμ + δσ² x·s + a √δ σ z)                            unconstrained sampler (UMS)

Both discretise the reverse of the first line. The first does so for log x, by the steps of exponentiated gradients,
so that nothing changes its sign; the second for x itself, and a large step can.

Shetty, Prasath, Seelamantula, 2025, arXiv:2510.02730. The reverse process and h(x_t | x_0) are derived, and agree
with the authors' program; there the loss is given the time k + 1 of noise at k, here both have one time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import UserError

Score = Callable[[Tensor, Tensor], Tensor]
"""s(x, t): the score ∂ log p_t at positive x, of one time for each row."""
Sampler = Literal["dale-langevin", "unconstrained"]


@dataclasses.dataclass(frozen=True)
class MultiplicativeDiffusion:
    """dX = μ X dt + σ X dW. Without ``mu`` it is σ²/2, and log X has no drift.

    Times are one for each row of x. Raises ``UserError`` unless ``sigma`` is above 0.
    """

    sigma: float = 0.8
    mu: float | None = None

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UserError(f"sigma={self.sigma} of a multiplicative diffusion; it must be above 0")

    @property
    def drift(self) -> float:
        """μ."""
        return self.sigma**2 / 2 if self.mu is None else self.mu

    def noised(
        self, x0: Float[Tensor, "batch ..."], t: Float[Tensor, " batch"], z: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """x_t for positive ``x0`` and normal ``z``. Raises ``UserError`` for data that is not positive."""
        if not (x0 > 0).all():
            raise UserError("multiplicative noise needs positive data; shift it, as pixels in [0, 1] by 1")
        t = _column(t, x0)
        return x0 * torch.exp((self.drift - self.sigma**2 / 2) * t + self.sigma * t.sqrt() * z)

    def target(
        self, xt: Float[Tensor, "batch ..."], x0: Float[Tensor, "batch ..."], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch ..."]:
        """h(x_t | x_0)."""
        t = _column(t, x0)
        moved = torch.log(xt / x0) - (self.drift - self.sigma**2 / 2) * t
        return -1 - moved / (self.sigma**2 * t)

    def loss(
        self,
        score: Score,
        x0: Float[Tensor, "batch ..."],
        t: Float[Tensor, " batch"],
        z: Float[Tensor, "batch ..."],
    ) -> Float[Tensor, ""]:
        """M-DSM: summed over a row's numbers, averaged over the rows."""
        xt = self.noised(x0, t, z)
        errors = xt * score(xt, t) - self.target(xt, x0, t)
        return (self.sigma**2 * _column(t, x0) * errors).square().flatten(1).sum(1).mean()

    def step(
        self,
        x: Float[Tensor, "batch ..."],
        modulated: Float[Tensor, "batch ..."],
        delta: float,
        z: Float[Tensor, "batch ..."],
        sampler: Sampler = "dale-langevin",
    ) -> Float[Tensor, "batch ..."]:
        """Back by ``delta`` in time; ``modulated`` is x · s, ``z`` the noise, with the annealing a in it."""
        variance = delta * self.sigma**2
        change = variance * modulated - delta * self.drift + math.sqrt(variance) * z
        if sampler == "dale-langevin":
            return x * torch.exp(change + 1.5 * variance)
        return x * (1 + change + 2 * variance)

    @torch.no_grad()
    def sample(
        self,
        score: Score,
        start: Float[Tensor, "batch ..."],
        *,
        steps: int,
        sampler: Sampler = "dale-langevin",
        delta: float | None = None,
        repeats: int = 1,
        annealing: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """From ``start`` at t = 1 through t = 1 − 1 / steps … to 1 / steps, the last score that is asked for.

        ``delta`` is 1 / steps by default, which follows the reverse process; the authors tune it, take ``repeats``
        steps at each time, and multiply the noise by ``annealing`` after each time.
        """
        if steps < 1 or repeats < 1:
            raise UserError(f"steps={steps} and repeats={repeats} of a sampler; both must be 1 or more")
        x, scale = start, 1.0
        for k in range(steps, 0, -1):
            t = torch.full((len(x),), k / steps, dtype=x.dtype, device=x.device)
            for _ in range(repeats):
                z = scale * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
                x = self.step(x, x * score(x, t), 1 / steps if delta is None else delta, z, sampler)
            scale *= annealing
        return x


def log_normal_like(
    x: Float[Tensor, "batch ..."], count: int, generator: torch.Generator | None = None
) -> Float[Tensor, "count ..."]:
    """Where sampling starts: independent log-normal numbers, with the mean and deviation of all of log ``x``."""
    logs = torch.log(x)
    z = torch.randn(count, *x.shape[1:], generator=generator, dtype=x.dtype, device=x.device)
    return torch.exp(logs.mean() + logs.std() * z)


def _column(t: Float[Tensor, " batch"], x: Float[Tensor, "batch ..."]) -> Tensor:
    return t.view(-1, *[1] * (x.ndim - 1))
