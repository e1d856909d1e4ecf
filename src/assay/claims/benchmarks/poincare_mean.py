"""The mean of points of the Poincaré ball: the midpoint, and the Fréchet mean, which minimises Σ d(x_i, m)².

The latter is found by iteration. In d² = f(y_i), y_i = c|x_i − m|² / ((1 − c|x_i|²)(1 − c|m|²)), f is replaced by its
tangent at the last y_i, which makes the sum a quadratic problem: with w_i = f′(y_i) / (1 − c|x_i|²),

    m = (s − √(s² − 4c|b|²)) / (2c|b|²) · b,    b = Σ w_i x_i,    s = Σ w_i (1 + c|x_i|²)

until m moves no further. Lou, Katsman, Jiang, Belongie, Lim, De Sa, 2020, arXiv:2003.00335.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from assay.claims.benchmarks import benchmarks
from assay.nn.residual.poincare import ball


@benchmarks.register("poincare-mean")
def poincare_mean(*, points: int = 4096, dim: int = 16, curvature: float = 0.1) -> dict[str, Callable[[], object]]:
    """``midpoint`` and ``frechet``, of Gaussian tangent vectors' points, in float64."""
    generator = torch.Generator().manual_seed(0)
    x = ball.exp0(torch.randn(points, dim, generator=generator, dtype=torch.float64), curvature)
    return {"midpoint": lambda: ball.midpoint(x, curvature), "frechet": lambda: frechet_mean(x, curvature)}


def frechet_mean(x: Float[Tensor, "points dim"], c: float, tolerance: float = 1e-6) -> Float[Tensor, " dim"]:
    """From the first point on, to a last step shorter than ``tolerance``, or than that share of the mean."""
    mean = x[0]
    square = c * x.square().sum(-1)
    while True:
        y = c * (x - mean).square().sum(-1) / ((1 - square) * (1 - c * mean.square().sum()))
        slope = torch.where(y < 1e-12, 4.0, 2 * torch.acosh(1 + 2 * y) / (y * y + y).sqrt())
        weight = slope / (1 - square)
        b, s = weight @ x, weight @ (1 + square)
        of_b = 2 * c * b.square().sum()
        before, mean = mean, (s - (s * s - 2 * of_b).sqrt()) / of_b * b
        moved = (mean - before).norm()
        if moved < tolerance or moved < tolerance * before.norm():
            return mean
