"""What variance reduction saves a Halpern iteration: evaluations of single terms until the residual is small.

``halpern-least-squares`` has cocoercive terms, consistent least squares of badly scaled features, and counts up to a
share of the first residual. ``halpern-game`` is the policeman and burglar game of the authors' code,

    A_ij = w_j (1 − exp(−0.8 |i − j|)),   w_j = |N(0, 1)|

where all methods get equally many evaluations and the best of some step sizes; ``halpern-resolvents`` is a bilinear
game without constraints, where resolvents and the solution are known in closed form.

Cai, Alacaoglu, Diakonikolas, 2023, arXiv:2310.02987.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from assay.claims.experiments import experiments
from assay.optim.halpern import FiniteSum, halpern_page, halpern_resolvent
from assay.optim.halpern.problems import bilinear_game, least_squares, matrix_game

STEP_SIZES = (0.5, 1, 2, 5, 10)
"""Multiples of 1 / ‖A‖ that all methods on the policeman and burglar game can choose from."""
INNER = ((0.05, 5), (0.5, 1), (0.5, 5), (5, 1))
"""Numbers and lengths of inner steps that resolvents can choose from; the first are the authors'."""


@experiments.register("halpern-least-squares")
def halpern_least_squares(
    seed: int, *, small: int = 100, large: int = 1600, features: int = 20, share: float = 0.3
) -> dict[str, float]:
    """``small.METHOD``, ``large.METHOD``: evaluations per term of ``page`` and of the deterministic iteration
    ``full`` until the residual is ``share`` of the first one; ``SIZE.gain``: their ratio.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, float] = {}
    for name, n in (("small", small), ("large", large)):
        rows = torch.randn(n, features, generator=generator, dtype=torch.float64)
        rows = rows / rows.norm(dim=1, keepdim=True) / torch.arange(1, features + 1)
        solution = torch.randn(features, generator=generator, dtype=torch.float64)
        problem, lipschitz = least_squares(rows, rows @ solution)
        start = torch.zeros_like(solution)
        tolerance = share * problem.residual(start, problem.mean(start, None))
        for method, batch_size in (("page", None), ("full", n)):
            result = halpern_page(
                problem,
                start,
                step_size=1 / (4 * lipschitz),
                tolerance=tolerance,
                max_calls=2000 * n,
                batch_size=batch_size,
                seed=seed,
            )
            found[f"{name}.{method}"] = result.calls / n if result.converged else math.nan
        found[f"{name}.gain"] = found[f"{name}.full"] / found[f"{name}.page"]
    return found


@experiments.register("halpern-game")
def halpern_game(seed: int, *, n: int = 100, passes: int = 400) -> dict[str, float]:
    """Residuals after ``passes`` · n evaluations, by ``page``, ``resolvent``, ``extragradient`` and ``anchored``
    extragradient (EAG), each with its best step size; ``start`` before the first.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(n, generator=generator, dtype=torch.float64).abs()
    places = torch.arange(n, dtype=torch.float64)
    matrix = weights * (1 - torch.exp(-0.8 * (places[:, None] - places).abs()))
    problem, _ = matrix_game(matrix)
    start = torch.full((2 * n,), 1 / n, dtype=torch.float64)
    spectral, average = torch.linalg.matrix_norm(matrix, 2).item(), matrix.norm().item()
    budget = passes * n

    def page(multiple: float) -> float:
        return halpern_page(
            problem, start, step_size=multiple / average, tolerance=0, max_calls=budget, seed=seed
        ).residual

    def resolvent(inner: tuple[float, float]) -> float:
        return halpern_resolvent(
            problem,
            start,
            lipschitz=average,
            tolerance=0,
            max_calls=budget,
            inner=inner[0],
            inner_step=inner[1],
            seed=seed,
        ).residual

    return {
        "start": problem.residual(start, problem.mean(start, None)),
        "page": min(x for x in map(page, STEP_SIZES) if math.isfinite(x)),
        "resolvent": min(x for x in map(resolvent, INNER) if math.isfinite(x)),
        "extragradient": min(_extragradient(problem, start, x / spectral, passes) for x in STEP_SIZES),
        "anchored": min(_extragradient(problem, start, x / spectral, passes, anchored=True) for x in STEP_SIZES),
    }


def _extragradient(
    problem: FiniteSum, start: Float[Tensor, " d"], step_size: float, passes: int, *, anchored: bool = False
) -> float:
    """The residual after ``passes`` evaluations of F, two a step; ``anchored`` steps start from a point that is
    pulled to the first by 1 / (k + 2).
    """
    u = start
    for k in range(passes // 2):
        base = (start + (k + 1) * u) / (k + 2) if anchored else u
        ahead = problem.resolvent(base - step_size * problem.mean(u, None), step_size)
        u = problem.resolvent(base - step_size * problem.mean(ahead, None), step_size)
    return problem.residual(u, problem.mean(u, None))


@experiments.register("halpern-resolvents")
def halpern_resolvents(seed: int, *, n: int = 50, passes: int = 600, inner: float = 5.0) -> dict[str, float]:
    """``residual`` after ``passes`` · n evaluations on a Gaussian game, what as many ``steps`` with ``exact``
    resolvents leave, and their ``bound``, 2 ‖u₀ − u*‖ / (η (k + 1)).
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    b, c = torch.randn(2, n, generator=generator, dtype=torch.float64)
    problem, lipschitz = bilinear_game(matrix, b, c)
    start = torch.zeros(2 * n, dtype=torch.float64)
    result = halpern_resolvent(
        problem, start, lipschitz=lipschitz, tolerance=0, max_calls=passes * n, inner=inner, seed=seed
    )
    steps, eta = result.history[-1].step, math.sqrt(n) / lipschitz
    zero, offset = torch.zeros_like(matrix), torch.cat([c, b])
    whole = torch.cat([torch.cat([zero, matrix.mT], 1), torch.cat([-matrix, zero], 1)])
    u = start
    for k in range(steps):
        v = torch.linalg.solve(torch.eye(2 * n, dtype=u.dtype) + eta * whole, u - eta * offset)
        u = (start + (k + 1) * v) / (k + 2)
    return {
        "steps": steps,
        "residual": result.residual,
        "exact": (whole @ u + offset).norm().item(),
        "bound": 2 * torch.linalg.solve(whole, offset).norm().item() / (eta * (steps + 1)),
    }
