import pytest

from assay.comparison.result import Point
from assay.reports.curves import aggregate, single


def with_curves(example, *curves, diverged=()):
    """An arm whose run with seed i has as its curve the i-th list of (step, value)."""
    arm = example(1, len(curves), diverged={(0, seed) for seed in diverged}).baseline
    runs = []
    for run, curve in zip(arm.runs, curves, strict=True):
        points = [Point(step=s, tokens=10 * s, seconds=s * (1 + run.seed), value=v) for s, v in curve]
        runs.append(run.model_copy(update={"curve": points, "tokens": 100, "flops": 5e6}))
    return arm.model_copy(update={"runs": runs})


def curve(run):
    return run.curve


def test_mean_range_and_budgets(example):
    arm = with_curves(example, [(0, 4.0), (10, 2.0)], [(0, 5.0), (10, 1.0)])
    found = aggregate(arm, curve)
    assert (found.mean, found.low, found.high) == ([4.5, 1.5], [4.0, 1.0], [5.0, 2.0])
    assert found.x == {"tokens": [0, 100], "flops": [0, 5e6], "seconds": [0, 15]}


def test_only_shared_steps_and_the_last_points_count(example):
    arm = with_curves(example, [(0, 4.0), (4, 3.0), (8, 2.0)], [(0, 4.0), (4, 1.0), (6, 1.5), (10, 1.0)])
    found = aggregate(arm, curve)
    assert found.mean == [4.0, 2.0, 1.5]
    assert found.x["tokens"] == [0, 40, 90]


def test_runs_that_diverged_are_apart(example):
    arm = with_curves(example, [(0, 4.0), (10, 2.0)], [(0, 4.0), (5, 9.0), (6, None)], diverged=[1])
    assert aggregate(arm, curve).mean == [4.0, 2.0]
    assert single(arm.runs[1], curve).mean == [4.0, 9.0]
    assert single(arm.runs[1], curve).x["tokens"] == [0, 50]


@pytest.mark.parametrize("curves", [([], []), ([(0, 1.0)], [])])
def test_nothing_to_show(example, curves):
    assert aggregate(with_curves(example, *curves), curve).mean == []
    lost = with_curves(example, [(0, 1.0)], diverged=[0])
    assert aggregate(lost, curve).mean == []
