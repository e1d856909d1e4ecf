"""Training the arms that a claim speaks of: a comparison whose directory all claims with these settings share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.claims.ways import Work
from assay.comparison.compare import compare
from assay.comparison.result import Comparison
from assay.comparison.spec import ComparisonSpec


class Arms:
    """Arms × seeds under one budget, tuned alike.

    ``tokens`` is the budget of a run, ``tune`` as in ``assay compare``, ``run`` the configuration of all arms.
    """

    def __init__(
        self,
        arms: Sequence[str],
        *,
        tokens: int | str,
        seeds: int,
        tune: Mapping[str, Sequence[Any]],
        run: Mapping[str, Any],
        patches: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.shared = {"tokens": tokens, "tune": tune, "run": run}
        self.spec = ComparisonSpec.parse({**self.shared, "arms": list(arms), "seeds": seeds, "patches": patches})

    def train(self, work: Work) -> Comparison:
        """Train what is not trained yet."""
        return compare(self.spec, out=self.directory(work), progress=work.progress)

    def directory(self, work: Work) -> Path:
        return work.shared("comparisons", self.shared)

    def runs(self, work: Work, result: Comparison) -> dict[str, dict[int, Path | None]]:
        """The directories of the runs by arm and seed; ``None`` for one that diverged."""
        runs = self.directory(work) / "runs"
        return {
            arm.name: {run.seed: runs / run.id if run.status == "complete" else None for run in arm.runs}
            for arm in result.arms
        }


def summary(result: Comparison) -> dict[str, Any]:
    """What readers want to know of a comparison beside its values: curves, tuned settings, sizes."""
    arms: dict[str, Any] = {}
    for arm in result.arms:
        finished = [run for run in arm.runs if run.status == "complete"]
        curves = zip(*([(point.tokens, point.value) for point in run.curve] for run in finished), strict=False)
        arms[arm.name] = {
            "parameters": arm.runs[0].parameters,
            "diverged": arm.diverged,
            "tuned": arm.tuned.chosen if arm.tuned else {},
            "curve": [[points[0][0], sum(v for _, v in points if v is not None) / len(points)] for points in curves],
        }
    return {"arms": arms, "data": result.data}


def budget(result: Comparison) -> dict[str, Any]:
    """What each run was given, and how many seeds there were."""
    return {**result.budget, "seeds": len(result.seeds)}
