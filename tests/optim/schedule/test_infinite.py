"""The infinite schedule: its joints and worked points, its limits, and new data that start without a jump."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import UserError
from assay.optim import schedules
from assay.optim.schedule.infinite import Infinite
from assay.optim.schedule.warmup_stable_decay import WarmupStableDecay
from assay.training.loop import train
from assay.training.run_directory import RunDirectory


def test_worked_points() -> None:
    """At a peak of 3e-4, a constant rate of 1.65e-4 and a floor of 3e-5, as in the paper."""
    f = Infinite(warmup=0.1, cooldown=0.4, constant=0.55, anneal=0.2, final=0.1)
    rates = [3e-4 * f(p) for p in (0.0, 0.05, 0.1, 0.3, 0.5, 0.65, 0.8, 0.9, 1.0)]
    assert rates == pytest.approx([0, 1.5e-4, 3e-4, 2.325e-4, 1.65e-4, 1.65e-4, 1.65e-4, 7.0356e-5, 3e-5], rel=1e-5)


@pytest.mark.parametrize("shape", ["cosine", "inverse-sqrt"])
def test_phases_join(shape: str) -> None:
    f = schedules.build("infinite", {"shape": shape})
    values = [f(i / 20_000) for i in range(20_001)]
    assert max(abs(b - a) for a, b in itertools.pairwise(values)) < 0.006  # the warm-up's slope
    peak = values.index(max(values))
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(values[peak:]))
    assert values[-1] == pytest.approx(0.1)


@given(st.floats(0, 1, exclude_max=True))
def test_at_the_peak_it_is_warmup_stable_decay(p: float) -> None:
    ours = Infinite(warmup=0.05, cooldown=0.0, constant=1.0, anneal=0.2, final=0.1)
    assert ours(p) == WarmupStableDecay(warmup=0.05, decay=0.2, final=0.1, shape="exponential")(p)


def test_the_constant_phase_does_not_know_of_the_end() -> None:
    """A run of twice the length has the same rates until the shorter one anneals."""
    short = Infinite(warmup=0.02, cooldown=0.4, anneal=0.2)
    long = Infinite(warmup=0.01, cooldown=0.2, anneal=0.2)
    for step in range(800):
        assert short(step / 1000) == pytest.approx(long(step / 2000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cooldown": 0.9}, "warmup=0.01, cooldown=0.9 and anneal=0.2 are more than a whole run"),
        ({"final": 0.6}, "final=0.6 is above constant=0.55"),
        ({"final": 0.0}, "option final=0.0: input should be greater than 0"),
        ({"constant": 1.5}, "option constant=1.5: input should be less than or equal to 1"),
        ({"anneal": math.nan}, r"anneal=nan is outside \[0, 1\]"),
        ({"shape": "linear"}, "option shape='linear'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedules.build("infinite", options)


def test_a_run_goes_on_at_the_constant_rate(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Two runs, the second of which starts in the constant phase, are one run of both budgets."""
    whole = {"name": "infinite", "warmup": 0.0, "cooldown": 0.25, "anneal": 0.25}
    once = train(tiny, out=tmp_path / "whole", values={"schedule": whole})
    first = {"name": "infinite", "warmup": 0.0, "cooldown": 0.5, "anneal": 0.0}
    then = {"name": "infinite", "warmup": 0.0, "cooldown": 0.0, "anneal": 0.5}
    half = {"training.tokens": 6 * 4 * 32}
    train(tiny, out=tmp_path / "first", values={"schedule": first, **half})
    values = {"schedule": then, **half, "start.run": str(tmp_path / "first")}
    assert train(tiny, out=tmp_path / "then", values=values).bits_per_byte == pytest.approx(once.bits_per_byte)
    rates = [row["lr"] for row in RunDirectory(tmp_path / "then").metrics() if "lr" in row]
    assert rates[:3] == pytest.approx([0.55 * 3e-3] * 3)
