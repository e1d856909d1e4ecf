"""Schedules at worked points, and within their bounds everywhere."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from assay.errors import UserError
from assay.optim import schedules
from assay.optim.schedule.constant import Constant
from assay.optim.schedule.cosine import Cosine
from assay.optim.schedule.warmup_stable_decay import WarmupStableDecay

share = st.floats(0, 1)
progress = st.floats(0, 1, exclude_max=True)


def test_constant() -> None:
    f = Constant(warmup=0.25)
    assert [f(p) for p in (0.0, 0.05, 0.125, 0.25, 0.6, 1.0)] == pytest.approx([0, 0.2, 0.5, 1, 1, 1])


def test_cosine() -> None:
    f = Cosine(warmup=0.2, final=0.1)
    assert [f(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])
    third = 0.2 + 0.8 / 3
    assert f(third) == pytest.approx(0.1 + 0.9 * 0.75)


def test_warmup_stable_decay() -> None:
    f = WarmupStableDecay(warmup=0.1, decay=0.4, final=0.2)
    assert [f(p) for p in (0.0, 0.05, 0.1, 0.3, 0.6, 0.8, 1.0)] == pytest.approx([0, 0.5, 1, 1, 1, 0.6, 0.2])


def test_without_warmup_the_peak_is_at_the_start() -> None:
    for f in (Constant(warmup=0), Cosine(warmup=0), WarmupStableDecay(warmup=0)):
        assert f(0.0) == 1.0


def test_extremes_that_would_divide_by_zero() -> None:
    assert WarmupStableDecay(warmup=0, decay=0)(0.999) == 1.0
    assert WarmupStableDecay(warmup=0, decay=1)(0.25) == 0.75
    assert Cosine(warmup=1)(0.5) == 0.5
    assert Cosine(warmup=1, final=0.1)(1.0) == pytest.approx(0.1)


@given(share, share, share, progress)
def test_bounds(warmup: float, decay: float, final: float, p: float) -> None:
    assert 0 <= Constant(warmup=warmup)(p) <= 1
    cosine = Cosine(warmup=warmup, final=final)(p)
    assert 0 <= cosine <= 1 + 1e-12
    if p >= warmup:
        assert cosine >= final - 1e-12
    assume(warmup + decay <= 1)
    stable = WarmupStableDecay(warmup=warmup, decay=decay, final=final)(p)
    assert 0 <= stable <= 1 + 1e-12
    if p >= warmup:
        assert stable >= final - 1e-12


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.5), st.floats(0.01, 0.5), share)
def test_no_jumps_and_one_peak(warmup: float, decay: float, final: float) -> None:
    """Between neighbouring points a schedule moves no more than its steepest slope allows; it rises, then falls."""
    points = [i / 1000 for i in range(1001)]
    steepest = {
        Constant(warmup=warmup): 1 / warmup,
        Cosine(warmup=warmup, final=final): max(1 / warmup, math.pi / 2 / (1 - warmup)),
        WarmupStableDecay(warmup=warmup, decay=decay, final=final): 1 / min(warmup, decay),
    }
    for schedule, slope in steepest.items():
        values = [schedule(p) for p in points]
        steps = [b - a for a, b in itertools.pairwise(values)]
        assert max(map(abs, steps)) <= slope / 1000 + 1e-9
        peak = values.index(max(values))
        assert all(step >= -1e-12 for step in steps[:peak])
        assert all(step <= 1e-12 for step in steps[peak:])


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0.0, 0.5))
def test_no_step_of_a_run_has_a_rate_of_zero(steps: int, warmup: float) -> None:
    """A run asks in the middle of its steps, (step + ½) / steps."""
    for schedule in (Constant(warmup=warmup), Cosine(warmup=warmup, final=0), WarmupStableDecay(warmup=warmup)):
        assert all(schedule((step + 0.5) / steps) > 0 for step in range(steps))


@pytest.mark.parametrize("name", ["constant", "cosine", "warmup-stable-decay"])
def test_shares_outside_the_unit_interval_are_refused(name: str) -> None:
    for value in (-0.1, 1.5, math.nan):
        with pytest.raises(UserError, match=rf"schedule '{name}': warmup=.* is outside \[0, 1\]"):
            schedules.build(name, {"warmup": value})


@pytest.mark.parametrize(("name", "options"), [("cosine", {"final": 2.0}), ("warmup-stable-decay", {"decay": -0.5})])
def test_other_shares_are_checked_too(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"outside \[0, 1\]"):
        schedules.build(name, options)


def test_overlapping_phases_are_refused() -> None:
    with pytest.raises(UserError, match=r"warmup=0\.6 and decay=0\.5 are more than a whole run"):
        WarmupStableDecay(warmup=0.6, decay=0.5)
