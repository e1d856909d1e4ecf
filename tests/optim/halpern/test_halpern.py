"""Halpern iteration: worked numbers, invariances and bounds; scipy and extragradient as independent solvers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

from assay.errors import UserError
from assay.optim import halpern
from assay.optim.halpern import FiniteSum, halpern_page, halpern_resolvent, resolve
from assay.optim.halpern.problems import bilinear_game, least_squares, matrix_game, saddle, to_simplex


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def game(n: int = 6, seed: int = 0) -> tuple[FiniteSum, float, Tensor]:
    """A bilinear game whose matrix is orthogonal, with its solution by scipy."""
    matrix, b, c = torch.linalg.qr(draw(n, n, seed=seed))[0], draw(n, seed=seed + 1), draw(n, seed=seed + 2)
    problem, lipschitz = bilinear_game(matrix, b, c)
    x = scipy.linalg.solve(matrix.numpy(), b.numpy())
    y = scipy.linalg.solve(matrix.numpy().T, -c.numpy())
    return problem, lipschitz, torch.from_numpy(np.concatenate([x, y]))


def regression(n: int = 60, d: int = 5) -> tuple[FiniteSum, float, Tensor]:
    rows = draw(n, d)
    rows = rows / rows.norm(dim=1, keepdim=True) / torch.arange(1, d + 1)
    solution = draw(d, seed=1)
    return *least_squares(rows, rows @ solution), solution


IDENTITY = FiniteSum(4, lambda u, terms: u)
ONE = torch.ones(1, dtype=torch.float64)


class TestPage:
    def test_worked_numbers(self) -> None:
        """F(u) = u, η = 1/4, u₀ = 1; the residual is u itself."""
        found = halpern_page(IDENTITY, ONE, step_size=0.25, tolerance=0, max_calls=4 * 5, batch_size=4)
        residuals = [seen.residual for seen in found.history]
        assert residuals == pytest.approx([1, 0.75, 0.6625, 0.609375, 0.568638], abs=1e-6)
        assert [seen.calls for seen in found.history] == [4, 8, 12, 16, 20]
        assert not found.converged

    def test_equal_terms_leave_nothing_to_estimate(self) -> None:
        """With all F_i equal the recursion telescopes: cheap steps are the expensive ones."""
        matrix = draw(5, 5)
        equal = FiniteSum(100, lambda u, terms: matrix @ matrix.mT @ u)
        options: dict[str, Any] = {"step_size": 0.02, "tolerance": 0, "seed": 3}
        cheap = halpern_page(equal, draw(5, seed=1), max_calls=4000, **options)
        dear = halpern_page(equal, draw(5, seed=1), max_calls=20_000, batch_size=100, **options)
        exact = {seen.step: seen.residual for seen in dear.history}
        compared = [seen for seen in cheap.history if seen.step in exact]
        assert max(seen.step for seen in compared) > 2 * len(compared)
        for seen in compared:
            assert seen.residual == pytest.approx(exact[seen.step], rel=1e-9)

    def test_the_cost_of_a_step(self) -> None:
        """n for all terms, 2√n for an estimate; an expensive step comes with probability 4 / (√n + 5) in the end."""
        problem, lipschitz, _ = regression(n=100)
        found = halpern_page(problem, draw(5), step_size=1 / lipschitz, tolerance=0, max_calls=60_000)
        steps, expensive = found.history[-1].step, len(found.history)
        assert found.calls == 100 * expensive + 20 * (steps + 1 - expensive)
        assert expensive / steps == pytest.approx(4 / 15, rel=0.15)

    def test_a_solution_stays(self) -> None:
        problem, lipschitz, solution = regression()
        found = halpern_page(problem, solution, step_size=0.25 / lipschitz, tolerance=0, max_calls=3000)
        torch.testing.assert_close(found.point, solution, rtol=1e-12, atol=1e-12)
        at_once = halpern_page(problem, solution, step_size=0.25 / lipschitz, tolerance=1e-12, max_calls=3000)
        assert (at_once.calls, at_once.converged) == (60, True)

    def test_moves_with_the_origin(self) -> None:
        problem, lipschitz, _ = regression()
        shift = draw(5, seed=9)
        shifted = FiniteSum(problem.count, lambda u, terms: problem.mean(u - shift, terms))
        options: dict[str, Any] = {"step_size": 0.25 / lipschitz, "tolerance": 0, "max_calls": 3000, "seed": 1}
        here = halpern_page(problem, draw(5, seed=2), **options)
        there = halpern_page(shifted, draw(5, seed=2) + shift, **options)
        torch.testing.assert_close(there.point, here.point + shift, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("batch_size", [None, 60])
    def test_residuals_fall_as_the_theorem_says(self, batch_size: int | None) -> None:
        """At most 16 L ‖u₀ − u*‖ / (k + 4) in the mean, at step size 1 / (4L)."""
        problem, lipschitz, solution = regression()
        for seed in range(3):
            found = halpern_page(
                problem,
                torch.zeros(5, dtype=torch.float64),
                step_size=0.25 / lipschitz,
                tolerance=0,
                max_calls=60 * 200,
                batch_size=batch_size,
                seed=seed,
            )
            bound = 16 * lipschitz * solution.norm().item()
            assert max(seen.residual * (seen.step + 4) for seen in found.history) < bound
            assert found.residual < 0.25 * found.history[0].residual

    def test_against_scipy_and_what_it_reports(self) -> None:
        rows, targets = draw(80, 4), draw(80, seed=1)
        problem, lipschitz = least_squares(rows, targets)
        found = halpern_page(
            problem, torch.zeros(4, dtype=torch.float64), step_size=1 / lipschitz, tolerance=1e-3, max_calls=10**6
        )
        expected = scipy.linalg.lstsq(rows.numpy(), targets.numpy())[0]
        assert found.converged
        assert found.residual == pytest.approx(problem.mean(found.point, None).norm().item(), rel=1e-12)
        np.testing.assert_allclose(found.point.numpy(), expected, atol=5e-3)


class TestResolvent:
    def exactly(self, monkeypatch: pytest.MonkeyPatch, matrix: Tensor) -> list[float]:
        """The outer iteration with (1 + ηM)⁻¹ itself; its ‖u − Ju‖ are noted in the list."""
        distances: list[float] = []

        def exact(problem: FiniteSum, u: Tensor, value: Tensor, *, eta: float, **rest: Any) -> tuple[Tensor, int]:
            v = torch.linalg.solve(torch.eye(len(u), dtype=u.dtype) + eta * matrix, u)
            distances.append((u - v).norm().item())
            return v, 0

        monkeypatch.setattr(halpern, "resolve", exact)
        return distances

    def test_worked_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """F(u) = u; η = √n / L = 1."""
        self.exactly(monkeypatch, torch.eye(1, dtype=torch.float64))
        found = halpern_resolvent(IDENTITY, ONE, lipschitz=2.0, tolerance=0, max_calls=4 * 5)
        assert [seen.residual for seen in found.history] == pytest.approx([1, 0.75, 7 / 12, 0.46875, 0.3875])

    def test_of_a_rotation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        self.exactly(monkeypatch, turn)
        problem, start = FiniteSum(4, lambda u, terms: turn @ u), torch.tensor([1.0, 0.0], dtype=torch.float64)
        for steps, point in enumerate([(0.75, 0.25), (0.5, 1 / 3), (0.3125, 0.3125)], 1):
            found = halpern_resolvent(problem, start, lipschitz=2.0, tolerance=0, max_calls=4 * (steps + 1))
            assert found.point.tolist() == pytest.approx(point)

    def test_the_bound_of_a_nonexpansive_map(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """‖u_k − J u_k‖ ≤ 2 ‖u₀ − u*‖ / (k + 1)."""
        matrix = draw(8, 8) - draw(8, 8).mT
        distances = self.exactly(monkeypatch, matrix)
        problem = FiniteSum(4, lambda u, terms: matrix @ u)
        halpern_resolvent(problem, draw(8, seed=1), lipschitz=2.0, tolerance=0, max_calls=400)
        assert len(distances) == 99
        assert all(d <= 2 * draw(8, seed=1).norm() / (k + 1) for k, d in enumerate(distances))

    def test_the_inner_iteration_finds_the_resolvent(self) -> None:
        problem, lipschitz, solution = game()
        u, eta = draw(12, seed=5), math.sqrt(6) / lipschitz
        jacobian = torch.func.jacfwd(lambda v: problem.mean(v, None))(u)
        offset = problem.mean(torch.zeros_like(u), None)
        expected = torch.linalg.solve(torch.eye(12, dtype=u.dtype) + eta * jacobian, u - eta * offset)
        errors = []
        for passes in (10, 80):
            generator = torch.Generator().manual_seed(0)
            v, calls = resolve(problem, u, problem.mean(u, None), eta=eta, steps=6 * passes, generator=generator)
            assert 12 * passes < calls < 24 * passes
            errors.append((v - expected).norm().item())
        assert errors[1] < 1e-3 * errors[0]
        v, _ = resolve(problem, solution, problem.mean(solution, None), eta=eta, steps=200, generator=generator)
        torch.testing.assert_close(v, solution, rtol=1e-10, atol=1e-10)

    def test_solves_the_game_as_scipy_and_extragradient_do(self) -> None:
        problem, lipschitz, solution = game()
        start = torch.zeros(12, dtype=torch.float64)
        found = halpern_resolvent(problem, start, lipschitz=lipschitz, tolerance=0.02, max_calls=10**6)
        assert found.converged
        assert found.residual == pytest.approx(problem.mean(found.point, None).norm().item())
        assert found.history[-2].residual > 0.02
        assert (found.point - solution).norm() <= found.residual * (1 + 1e-6)

        jacobian = torch.func.jacfwd(lambda v: problem.mean(v, None))(start).numpy()
        offset, u = problem.mean(start, None).numpy(), start.numpy()
        for _ in range(200):
            u = u - 0.5 * (jacobian @ (u - 0.5 * (jacobian @ u + offset)) + offset)
        np.testing.assert_allclose(found.point.numpy(), u, atol=0.02)

    def test_halpern_s_rate_on_the_game(self) -> None:
        """η ‖F(u_k)‖ ≤ 2 ‖u₀ − u*‖ / (k + 1) but for what the inner iteration lacks."""
        problem, lipschitz, solution = game()
        start = draw(12, seed=7)
        found = halpern_resolvent(problem, start, lipschitz=lipschitz, tolerance=0, max_calls=10_000)
        eta = math.sqrt(6) / lipschitz
        bounds = [2 * (start - solution).norm().item() / (seen.step + 1) / eta for seen in found.history[1:]]
        assert len(bounds) > 20
        assert all(seen.residual < 2 * bound for seen, bound in zip(found.history[1:], bounds, strict=True))

    def test_a_matrix_game_s_value_is_that_of_linear_programming(self) -> None:
        matrix = draw(5, 5, seed=4)
        problem, lipschitz = matrix_game(matrix)
        start = torch.full((10,), 0.2, dtype=torch.float64)
        found = halpern_resolvent(problem, start, lipschitz=lipschitz, tolerance=0.01, max_calls=10**6)
        assert found.converged
        program = scipy.optimize.linprog(
            np.r_[np.zeros(5), 1.0],
            A_ub=np.c_[matrix.numpy(), -np.ones(5)],
            b_ub=np.zeros(5),
            A_eq=[[1.0] * 5 + [0.0]],
            b_eq=[1.0],
            bounds=[(0, None)] * 5 + [(None, None)],
        )
        x, y = to_simplex(found.point.view(2, 5))
        assert (matrix @ x).max().item() == pytest.approx(program.fun, abs=0.03)
        assert (y @ matrix).min().item() == pytest.approx(program.fun, abs=0.03)


class TestProblems:
    def test_terms_have_the_operator_as_their_mean(self) -> None:
        for problem, _, solution in (game(), regression()):
            u = draw(len(solution), seed=8)
            terms = [problem.mean(u, torch.tensor([i])) for i in range(problem.count)]
            torch.testing.assert_close(torch.stack(terms).mean(0), problem.mean(u, None))
            torch.testing.assert_close(problem.mean(solution, None), torch.zeros_like(u), atol=1e-12, rtol=0)

    @pytest.mark.parametrize("make", [game, regression])
    def test_the_constant_on_average(self, make: Any) -> None:
        """mean ‖F_i(u) − F_i(v)‖² ≤ L² ‖u − v‖², and for cocoercive terms ≤ L ⟨F(u) − F(v), u − v⟩."""
        problem, lipschitz, solution = make()
        for seed in range(20):
            u, v = draw(2, len(solution), seed=seed)
            terms = [torch.tensor([i]) for i in range(problem.count)]
            mean = sum((problem.mean(u, i) - problem.mean(v, i)).square().sum() for i in terms) / problem.count
            inner = (problem.mean(u, None) - problem.mean(v, None)) @ (u - v)
            bound = lipschitz**2 * (u - v).square().sum() if make is game else lipschitz * inner
            assert mean <= bound * (1 + 1e-9)
            assert inner >= -1e-9

    def test_any_saddle_by_autograd(self) -> None:
        """Terms (a_iᵀx)² / 2 + xᵀB_i y − ‖y‖² / 2, whose F_i is (a_i a_iᵀx + B_i y, y − B_iᵀx)."""
        rows, crossed = draw(7, 4), draw(7, 4, 3, seed=1)

        def loss(x: Tensor, y: Tensor, terms: Tensor | None) -> Tensor:
            a, b = (rows, crossed) if terms is None else (rows[terms], crossed[terms])
            return (a @ x).square().mean() / 2 + x @ b.mean(0) @ y - y @ y / 2

        u, problem = draw(7, seed=2), saddle(loss, 7, 4)
        x, y = u[:4], u[4:]
        by_hand = [torch.cat([a * (a @ x) + b @ y, y - x @ b]) for a, b in zip(rows, crossed, strict=True)]
        torch.testing.assert_close(problem.mean(u, torch.tensor([2])), by_hand[2])
        torch.testing.assert_close(problem.mean(u, torch.tensor([0, 3])), (by_hand[0] + by_hand[3]) / 2)
        torch.testing.assert_close(problem.mean(u, None), torch.stack(by_hand).mean(0))

    def test_the_simplex(self) -> None:
        points = 2 * draw(20, 6)
        nearest = to_simplex(points)
        torch.testing.assert_close(nearest.sum(1), torch.ones(20, dtype=torch.float64))
        assert (nearest >= 0).all()
        for point, projected in zip(points, nearest, strict=True):
            found = scipy.optimize.minimize(
                lambda z, point=point: ((z - point.numpy()) ** 2).sum(),
                np.full(6, 1 / 6),
                bounds=[(0, None)] * 6,
                constraints={"type": "eq", "fun": lambda z: z.sum() - 1},
                options={"ftol": 1e-14},
            )
            np.testing.assert_allclose(projected.numpy(), found.x, atol=1e-5)


def test_the_seed_decides_all() -> None:
    problem, lipschitz, _ = game()
    start = torch.ones(12, dtype=torch.float64)
    one, same, other = (
        halpern_resolvent(problem, start, lipschitz=lipschitz, tolerance=0, max_calls=900, seed=seed).point
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


class TestMistakes:
    def test_of_numbers(self) -> None:
        problem, _, _ = regression()
        start = torch.zeros(5, dtype=torch.float64)
        right: dict[str, Any] = {"step_size": 0.1, "tolerance": 0.1, "max_calls": 100}
        for wrong, message in (
            ({"step_size": -1.0}, "step_size=-1.0: it should be positive and finite"),
            ({"tolerance": math.nan}, "tolerance=nan: a residual is at least 0"),
            ({"max_calls": 0}, "max_calls=0"),
            ({"batch_size": 61}, "batch_size=61 of 60 terms: it should be between 1 and their number"),
        ):
            with pytest.raises(UserError, match=message):
                halpern_page(problem, start, **{**right, **wrong})
        with pytest.raises(UserError, match="lipschitz=0"):
            halpern_resolvent(problem, start, lipschitz=0, tolerance=0.1, max_calls=100)
        with pytest.raises(UserError, match="vector of finite numbers"):
            halpern_page(problem, start / 0, **right)
        with pytest.raises(UserError, match="at least 2 terms"):
            halpern_resolvent(FiniteSum(1, problem.mean), start, lipschitz=1, tolerance=0.1, max_calls=100)

    def test_of_shapes(self) -> None:
        with pytest.raises(UserError, match=r"should be \(n, n\) and \(n,\)"):
            bilinear_game(draw(3, 4), draw(3), draw(3))
        with pytest.raises(UserError, match=r"should be \(n, d\) and \(n,\)"):
            least_squares(draw(3, 4), draw(4))

    def test_a_step_size_that_diverges_is_over_and_not_converged(self) -> None:
        problem, lipschitz, _ = regression()
        found = halpern_page(
            problem, torch.ones(5, dtype=torch.float64), step_size=1e9 / lipschitz, tolerance=0, max_calls=10**7
        )
        assert not found.converged
        assert not math.isfinite(found.residual)
        assert found.calls < 10**6
