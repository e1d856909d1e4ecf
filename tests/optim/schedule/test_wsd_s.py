"""WSD-S at the points of its authors' test, its limits, and a run whose kept checkpoints are the decayed ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import UserError
from assay.optim import schedules
from assay.optim.schedule.warmup_stable_decay import WarmupStableDecay
from assay.optim.schedule.wsd_s import WSDS
from assay.training.loop import train
from assay.training.run_directory import RunDirectory

progress = st.floats(0, 1, exclude_max=True)
MINIMA = WSDS(budgets=(0.3, 0.7), warmup=0.0, decay=0.1, final=0.1)
"""Of 1,000 steps: minima at 300, 700 and 1,000."""


def test_the_rates_of_the_authors_test() -> None:
    assert [MINIMA(step / 1000) for step in (0, 269, 300, 659, 701, 969)] == [1.0] * 6
    assert max(MINIMA(step / 1000) for step in (271, 661, 971)) < 1


def test_each_cycle_decays_inversely_down_to_the_floor() -> None:
    for start, end in ((0.27, 0.3), (0.66, 0.7), (0.97, 1.0)):
        found = [MINIMA(start + u * (end - start)) for u in (0.25, 0.5, 0.75)]
        assert found == pytest.approx([0.30769, 0.18182, 0.12903], rel=1e-4)
        assert MINIMA(math.nextafter(end, 0)) == pytest.approx(0.1)


@given(progress)
def test_one_budget_is_warmup_stable_decay(p: float) -> None:
    alone = WSDS(budgets=(), warmup=0.05, decay=0.2, final=0.1)
    assert alone(p) == WarmupStableDecay(warmup=0.05, decay=0.2, final=0.1, shape="inverse")(p)


@given(progress)
def test_a_decay_of_whole_cycles_is_a_cyclic_cosine(p: float) -> None:
    start, end = next((a, b) for a, b in ((0, 0.25), (0.25, 0.5), (0.5, 1)) if p < b)
    cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * (p - start) / (end - start)))
    assert WSDS(warmup=0.0, decay=1.0, shape="cosine")(p) == pytest.approx(cosine)


def test_a_decay_of_whole_cycles_leaves_the_warmup_alone() -> None:
    f = WSDS(warmup=0.05, decay=1.0, shape="cosine")
    assert [f(p) for p in (0.025, 0.05, 0.15)] == pytest.approx([0.5, 1.0, 0.55])


@given(progress)
def test_a_floor_at_the_peak_is_a_constant(p: float) -> None:
    assert WSDS(warmup=0.0, final=1.0)(p) == pytest.approx(1.0)


@given(progress)
def test_a_cycle_does_not_know_of_later_budgets(p: float) -> None:
    """The first half of a run with the budgets ¼, ½, 1 is a run of half the length with ½, 1."""
    long, short = WSDS(budgets=(0.25, 0.5), warmup=0.05), WSDS(budgets=(0.5,), warmup=0.1)
    assert long(p / 2) == pytest.approx(short(p))


@settings(max_examples=60)
@given(st.lists(st.floats(0.1, 0.9), min_size=1, max_size=4, unique=True), st.floats(0.01, 1), progress)
def test_rates_stay_between_floor_and_peak(budgets: list[float], decay: float, p: float) -> None:
    f = WSDS(budgets=tuple(sorted(budgets)), warmup=0.0, decay=decay)
    assert 0.1 - 1e-12 <= f(p) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": (0.5, 0.5)}, r"budgets=\[0.5, 0.5\] do not rise"),
        ({"budgets": (0.5, 0.25)}, "do not rise; give each one once, in order"),
        ({"budgets": (0.5, 1.0)}, "less than 1"),
        ({"decay": 0.0}, "option decay=0.0: input should be greater than 0"),
        ({"final": 0.0}, "'inverse' never reaches final=0"),
        ({"warmup": 0.3}, "warmup=0.3 goes on after the first budget, 0.25"),
        ({"final": -1.0}, r"outside \[0, 1\]"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedules.build("wsd-s", options)


@pytest.mark.parametrize("steps", [8, 11, 13])
def test_a_budget_is_kept_at_the_end_of_its_decay(tiny: dict[str, Any], tmp_path: Path, steps: int) -> None:
    """Whatever the number of steps, the last one before a kept checkpoint is the lowest of the cycle."""
    values = {
        "training.tokens": steps * 4 * 32,
        "training.keep": [0.25, 0.5],
        "schedule": {"name": "wsd-s", "decay": 1.0, "warmup": 0.0},
    }
    train(tiny, out=tmp_path / "run", values=values)
    rows = list(RunDirectory(tmp_path / "run").metrics())
    rates = [row["lr"] for row in rows if "lr" in row]
    kept = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    falls_end_at = [step for step in range(1, steps) if rates[step] > rates[step - 1]]
    assert kept == falls_end_at
    assert {row["step"] for row in rows if "bits_per_byte" in row} >= set(kept)


def test_a_run_that_parts_from_a_minimum_is_the_run_that_went_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Moments and data go on from the decayed weights: budgets ½ and 1 are two runs, one after the other."""
    cycle = {"name": "wsd-s", "budgets": [], "decay": 0.5, "warmup": 0.0}
    whole = {"schedule": {**cycle, "budgets": [0.5]}, "training.keep": [0.5]}
    one = train(tiny, out=tmp_path / "whole", values=whole)
    half = {"schedule": cycle, "training.tokens": 6 * 4 * 32}
    first = train(tiny, out=tmp_path / "first", values=half)
    second = train(tiny, out=tmp_path / "second", values={**half, "start.run": str(tmp_path / "first")})
    rows = [row for row in RunDirectory(tmp_path / "whole").metrics() if "bits_per_byte" in row]
    assert first.bits_per_byte == next(row["bits_per_byte"] for row in rows if row["step"] == 6)
    assert second.bits_per_byte == one.bits_per_byte
