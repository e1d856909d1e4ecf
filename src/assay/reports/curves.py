"""Learning curves of an arm: the mean over its seeds, the range between them, and the runs that diverged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from assay.comparison.result import ArmResult, Point, RunResult

AXES = {"tokens": "Tokens", "flops": "FLOPs", "seconds": "Seconds of training"}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values against each of the three budgets: ``x["tokens"][i]``, ``x["flops"][i]``, ``x["seconds"][i]``."""

    x: dict[str, list[float]]
    mean: list[float]
    low: list[float]
    high: list[float]


def aggregate(arm: ArmResult, points: Callable[[RunResult], Sequence[Point]]) -> Curve:
    """Mean, minimum and maximum over the runs that finished, at the steps that all of them measured.

    Runs that end at different steps (a budget in seconds) are also put together at their last points. The
    budgets at a point are means over the runs.
    """
    runs = [run for run in arm.runs if run.status == "complete"]
    series = [(run, {point.step: point for point in _finite(points(run))}) for run in runs]
    if not series or not all(by_step for _, by_step in series):
        return Curve({axis: [] for axis in AXES}, [], [], [])
    common = sorted(set.intersection(*(set(by_step) for _, by_step in series)))
    columns = [[(run, by_step[step]) for run, by_step in series] for step in common]
    lasts = [(run, by_step[max(by_step)]) for run, by_step in series]
    if not columns or lasts != columns[-1]:
        columns.append(lasts)
    values = [[point.value or 0.0 for _, point in column] for column in columns]
    budgets = [[_budget(run, point) for run, point in column] for column in columns]
    return Curve(
        x={axis: [_mean([b[axis] for b in column]) for column in budgets] for axis in AXES},
        mean=[_mean(column) for column in values],
        low=[min(column) for column in values],
        high=[max(column) for column in values],
    )


def single(run: RunResult, points: Callable[[RunResult], Sequence[Point]]) -> Curve:
    """One run as it is, up to where its values stop being finite."""
    kept = _finite(points(run))
    values = [point.value or 0.0 for point in kept]
    budgets = [_budget(run, point) for point in kept]
    return Curve({axis: [budget[axis] for budget in budgets] for axis in AXES}, values, values, values)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.value is not None]


def _budget(run: RunResult, point: Point) -> dict[str, float]:
    """What a run had spent at a point; FLOPs are in proportion to tokens."""
    share = point.tokens / run.tokens if run.tokens else 0.0
    return {"tokens": point.tokens, "flops": run.flops * share, "seconds": point.seconds}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
