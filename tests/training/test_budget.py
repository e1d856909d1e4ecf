"""Budgets: how many steps they pay for, and where in them a run stands."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.config import assign
from assay.errors import UserError
from assay.training.budget import Budget
from assay.training.config import RunConfig
from assay.training.flops import flops_per_token

TINY = {
    "model": {"depth": 1, "hidden_size": 16, "num_heads": 2, "vocab_size": 257},
    "data": {"sequence_length": 8, "batch_size": 3},
}


def config(**training: Any) -> RunConfig:
    return RunConfig.parse(assign(TINY, {"training": training}))


PRICE = 24 * flops_per_token(config().model, 8)
"""FLOPs of a step: 3 rows of 8 tokens."""


@settings(deadline=None)
@given(st.integers(24, 10**9))
def test_tokens_pay_for_whole_steps(tokens: int) -> None:
    budget = Budget.of(config(tokens=tokens))
    assert budget.steps is not None
    assert budget.steps * 24 <= tokens < (budget.steps + 1) * 24
    assert budget.seconds is None
    assert budget.flops_per_step == PRICE


@settings(deadline=None)
@given(st.floats(1, 1e6))
def test_flops_pay_for_whole_steps(steps: float) -> None:
    budget = Budget.of(config(flops=steps * PRICE))
    assert budget.steps is not None
    assert budget.steps * PRICE <= steps * PRICE < (budget.steps + 1) * PRICE


def test_flops_of_just_so_many_steps_pay_for_them() -> None:
    for steps in (1, 3, 7, 1000):
        assert Budget.of(config(flops=steps * PRICE)).steps == steps


def test_steps_are_counted_from_their_middles() -> None:
    """The mean of the progress over a run's steps is one half, whatever their number."""
    budget = Budget.of(config(tokens=24 * 4))
    assert [budget.progress(step, 1e9) for step in range(4)] == [0.125, 0.375, 0.625, 0.875]
    assert [budget.spent(steps, 0.0) for steps in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_seconds() -> None:
    budget = Budget.of(config(seconds="2min"))
    assert budget.steps is None
    assert budget.progress(17, 30.0) == budget.spent(17, 30.0) == 0.25
    assert budget.progress(17, 121.0) == 1.0
    assert budget.spent(17, 150.0) == 1.25
    assert Budget.of(config(seconds=1e-9)).seconds == 1e-9


def test_a_budget_below_one_step_is_refused_with_its_price() -> None:
    with pytest.raises(UserError, match=r"not pay for one step: one step takes 24 tokens \(batch_size × sequence"):
        Budget.of(config(tokens=23))
    with pytest.raises(UserError, match=f"one step costs {PRICE:.3g} FLOPs".replace("+", r"\+")):
        Budget.of(config(flops=PRICE * 0.999))
