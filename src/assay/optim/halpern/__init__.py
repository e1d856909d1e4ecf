"""Variance-reduced Halpern iteration for finite-sum monotone inclusions.

    0 ∈ F(u) + G(u),   F = (1/n) Σ F_i monotone,   J_c = (1 + c G)⁻¹

Every step is pulled back to the start u₀. ``halpern_page``, for F_i that are cocoercive on average, steps by an
estimate g that is recursive (PAGE), and exact with probability p_k:

    g ← F(u), or g + mean over a batch S of F_j(u) − F_j(u₋)
    u ← J_η( λ_k u₀ + (1 − λ_k) u − η g ),     λ_k = 2 / (k + 4),  p_k = 4 / (min(k, √n + 1) + 4),  p₀ = p₁ = 1

``halpern_resolvent``, for F_i that are Lipschitz on average, steps to v ≈ (1 + η(F + G))⁻¹ u, found by forward-
reflected-backward steps with a snapshot w:

    u ← λ_k u₀ + (1 − λ_k) v,     λ_k = 1 / (k + 2),  η = √n / L
    v ← J( (1 − p) v + p w − γ [H(w) + η (F_i(v) − F_i(w₋)) + v − w₋] ),     H(w) = η F(w) + w − u,  p = 1 / n
    w ← v with probability p

Both need O(n + √n L / ε) evaluations of an F_i (up to logarithms) until the last iterate's residual is below ε; it is
known whenever F is, and the iteration stops on it.

Cai, Alacaoglu, Diakonikolas, 2023, arXiv:2310.02987.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.errors import UserError


def identity(u: Tensor, c: float) -> Tensor:
    """The resolvent of G = 0."""
    return u


@dataclasses.dataclass(frozen=True)
class FiniteSum:
    """``mean(u, S)`` is the mean of F_i(u) over the indices S, or over all ``count`` without; ``resolvent(u, c)`` is
    J_c(u), which for the constraint to a set is the projection, whatever c.
    """

    count: int
    mean: Callable[[Float[Tensor, " d"], Int[Tensor, " batch"] | None], Float[Tensor, " d"]]
    resolvent: Callable[[Float[Tensor, " d"], float], Float[Tensor, " d"]] = identity

    def residual(self, u: Float[Tensor, " d"], value: Float[Tensor, " d"]) -> float:
        """‖u − J₁(u − F(u))‖ where F(u) is ``value``: without G the norm of F(u), and 0 at solutions only."""
        return (u - self.resolvent(u - value, 1.0)).norm().item()


class Seen(NamedTuple):
    """``residual`` at the iterate after ``step`` steps, when an F_i had been evaluated ``calls`` times."""

    step: int
    calls: int
    residual: float


@dataclasses.dataclass(frozen=True)
class Solution:
    """``calls`` is how often an F_i was evaluated; ``history`` has every iterate at which F was computed."""

    point: Float[Tensor, " d"]
    residual: float
    calls: int
    converged: bool
    history: list[Seen]


def halpern_page(
    problem: FiniteSum,
    start: Float[Tensor, " d"],
    *,
    step_size: float,
    tolerance: float,
    max_calls: int,
    batch_size: int | None = None,
    seed: int = 0,
) -> Solution:
    """From ``start`` until the residual is at most ``tolerance``, or ``max_calls`` evaluations of an F_i are made.

    ``step_size`` is η, 1 / (4L) in theory, where L⁻¹ is the constant of cocoercivity on average; ``batch_size`` is
    √n rounded down if not given, and n makes it the deterministic iteration. Bilinear games are not cocoercive.

    Raises ``UserError`` for numbers outside of their ranges and for a ``start`` that is not finite.
    """
    n = problem.count
    size = math.isqrt(n) if batch_size is None else batch_size
    if not 1 <= size <= n:
        raise UserError(f"batch_size={size} of {n} terms: it should be between 1 and their number")
    run = _Run(problem, start, tolerance, max_calls, step_size=step_size)
    generator = torch.Generator().manual_seed(seed)
    u = before = start
    g = torch.zeros_like(start)
    for k in itertools.count():
        if size == n or k <= 1 or torch.rand((), generator=generator) < 4 / (min(k, math.sqrt(n) + 1) + 4):
            g = run.everything(u, k)
            if run.over:
                return run.solution(u)
        else:
            batch = torch.randperm(n, generator=generator)[:size].to(start.device)
            g = g + problem.mean(u, batch) - problem.mean(before, batch)
            run.calls += 2 * size
        pull = 2 / (k + 4)
        before, u = u, problem.resolvent(pull * start + (1 - pull) * u - step_size * g, step_size)
    raise AssertionError


def halpern_resolvent(
    problem: FiniteSum,
    start: Float[Tensor, " d"],
    *,
    lipschitz: float,
    tolerance: float,
    max_calls: int,
    inner: float = 5.0,
    inner_step: float = 1.0,
    seed: int = 0,
) -> Solution:
    """The same by approximate resolvents, each of ``inner`` · n · log(k + 2) inner steps of ``inner_step`` · γ.

    ``lipschitz`` is L, the constant on average: √(mean ‖F_i(u) − F_i(v)‖²) ≤ L ‖u − v‖. Too few inner steps give
    another map's fixed point, too many cost their number. The authors' games take 0.05 of them, 5 times as long.

    Raises ``UserError`` for numbers outside of their ranges and for a ``start`` that is not finite.
    """
    n = problem.count
    if n < 2:
        raise UserError("halpern_resolvent needs a sum of at least 2 terms; one term has no variance to reduce")
    run = _Run(problem, start, tolerance, max_calls, lipschitz=lipschitz, inner=inner, inner_step=inner_step)
    generator = torch.Generator().manual_seed(seed)
    eta, u = math.sqrt(n) / lipschitz, start
    for k in itertools.count():
        value = run.everything(u, k)
        if run.over:
            return run.solution(u)
        steps = math.ceil(inner * n * math.log(k + 2))
        v, calls = resolve(problem, u, value, eta=eta, steps=steps, inner_step=inner_step, generator=generator)
        run.calls += calls
        u = (start + (k + 1) * v) / (k + 2)
    raise AssertionError


def resolve(
    problem: FiniteSum,
    u: Float[Tensor, " d"],
    value: Float[Tensor, " d"],
    *,
    eta: float,
    steps: int,
    generator: torch.Generator,
    inner_step: float = 1.0,
) -> tuple[Float[Tensor, " d"], int]:
    """(1 + η(F + G))⁻¹ u, approximately, and the evaluations spent; ``value`` is F(u).

    γ is √(p(1 − p)) / (√n + 1) times ``inner_step``; √n + 1 bounds the Lipschitz constant of H on average.
    """
    n = problem.count
    p = 1 / n
    gamma = inner_step * math.sqrt(p * (1 - p)) / (math.sqrt(n) + 1)
    indices = torch.randint(n, (steps,), generator=generator).to(u.device)
    refreshed = (torch.rand(steps, generator=generator) < p).tolist()
    v = w = before = u
    h = eta * value
    for index, refresh in zip(indices.split(1), refreshed, strict=True):
        step = h + eta * (problem.mean(v, index) - problem.mean(before, index)) + v - before
        v = problem.resolvent((1 - p) * v + p * w - gamma * step, gamma * eta)
        before = w
        if refresh:
            w = v
            h = eta * problem.mean(w, None) + w - u
    return v, 2 * steps + n * sum(refreshed)


class _Run:
    """What a solver has spent, and when it is over."""

    def __init__(
        self, problem: FiniteSum, start: Tensor, tolerance: float, max_calls: int, **positive: float
    ) -> None:
        for name, number in {"max_calls": max_calls, **positive}.items():
            if not 0 < number < math.inf:
                raise UserError(f"{name}={number}: it should be positive and finite")
        if not tolerance >= 0:
            raise UserError(f"tolerance={tolerance}: a residual is at least 0")
        if start.ndim != 1 or not start.isfinite().all():
            raise UserError("start should be a vector of finite numbers")
        self.problem, self.tolerance, self.max_calls = problem, tolerance, max_calls
        self.calls, self.history = 0, list[Seen]()

    def everything(self, u: Tensor, step: int) -> Tensor:
        """F(u), whose residual goes into the history."""
        value = self.problem.mean(u, None)
        self.calls += self.problem.count
        self.history.append(Seen(step, self.calls, self.problem.residual(u, value)))
        return value

    @property
    def converged(self) -> bool:
        return self.history[-1].residual <= self.tolerance

    @property
    def over(self) -> bool:
        return self.converged or self.calls >= self.max_calls or not math.isfinite(self.history[-1].residual)

    def solution(self, u: Tensor) -> Solution:
        return Solution(u, self.history[-1].residual, self.calls, self.converged, self.history)
