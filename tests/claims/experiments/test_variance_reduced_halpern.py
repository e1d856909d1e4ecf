from __future__ import annotations

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.variance_reduced_halpern import _extragradient
from assay.optim.halpern import FiniteSum


def test_evaluations_are_counted_per_term_and_the_gain_is_their_ratio() -> None:
    options = {"small": 10, "large": 100, "features": 3, "share": 0.3}
    found, again = (experiments.build("halpern-least-squares", options, seed=1) for _ in range(2))
    assert found == again
    assert found["small.full"] == int(found["small.full"])
    assert found["large.gain"] == pytest.approx(found["large.full"] / found["large.page"])


def test_extragradient_by_hand() -> None:
    """F(x, y) = (y, −x) with step ½ from (1, 0): first (1, ½), then (¾, ½); anchored the same first step."""
    turn = FiniteSum(2, lambda u, terms: torch.stack([u[1], -u[0]]))
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert _extragradient(turn, start, 0.5, 2) == pytest.approx((0.75**2 + 0.5**2) ** 0.5)
    assert _extragradient(turn, start, 0.5, 2, anchored=True) == pytest.approx((0.75**2 + 0.5**2) ** 0.5)
    base = (1 + 2 * 0.75) / 3, 2 * 0.5 / 3
    ahead = base[0] - 0.25, base[1] + 0.375
    after = base[0] - 0.5 * ahead[1], base[1] + 0.5 * ahead[0]
    expected = (after[0] ** 2 + after[1] ** 2) ** 0.5
    assert _extragradient(turn, start, 0.5, 4, anchored=True) == pytest.approx(expected)


def test_all_methods_come_nearer_to_the_equilibrium() -> None:
    found = experiments.build("halpern-game", {"n": 6, "passes": 60}, seed=0)
    assert all(found[method] < 0.8 * found["start"] for method in found.keys() - {"start"})


def test_good_resolvents_are_exact_ones() -> None:
    found = experiments.build("halpern-resolvents", {"n": 4, "passes": 400, "inner": 30}, seed=0)
    assert found["steps"] > 2
    assert found["residual"] == pytest.approx(found["exact"], rel=0.01)
    assert found["exact"] < found["bound"]
