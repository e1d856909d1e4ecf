"""The directory of a comparison.

spec.json          what all its runs share; a later call must agree with it
runs/<id>/         one directory per run, named by what the run is, so that equal runs are one
comparison.json    the result
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from assay.comparison.result import FILE_NAME, Point, RunResult, thin
from assay.comparison.spec import ComparisonSpec
from assay.config import flatten
from assay.errors import UserError
from assay.files import disk_errors, write_json
from assay.training.config import EXECUTION
from assay.training.run_directory import RunDirectory


class ComparisonDirectory:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.spec_path = self.path / "spec.json"

    def open(self, spec: ComparisonSpec) -> None:
        """Create the directory, or check that it holds this comparison: arms and seeds may be others.

        Raises ``UserError`` if the path is a file, or holds something else or another comparison.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {str(self.path)!r} is a file; a comparison needs a directory")
        shared = _shared(spec)
        if self.spec_path.exists():
            self._check_same(shared)
            return
        strangers = (
            sorted(e.name for e in self.path.iterdir() if not e.name.startswith(".")) if self.path.exists() else []
        )
        if strangers:
            raise UserError(
                f"--out {str(self.path)!r} is not empty and holds no comparison (it has {strangers[0]!r})"
            )
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.spec_path, shared)

    def run_path(self, run_id: str) -> Path:
        return self.path / "runs" / run_id

    @property
    def result_path(self) -> Path:
        return self.path / FILE_NAME

    def result(self, arm: str, seed: int, run_id: str) -> RunResult:
        """What a finished run has to say. Raises ``UserError`` if its files are damaged."""
        directory = RunDirectory(self.run_path(run_id))
        summary = directory.summary()
        if summary is None:
            raise UserError(f"{str(directory.path)!r} holds a run that is not over")
        curve: dict[int, Point] = {}
        train: dict[int, Point] = {}
        diagnostics: dict[str, dict[int, Point]] = {}
        for row in directory.metrics():
            for points, name in ((curve, "bits_per_byte"), (train, "loss")):
                if name in row:
                    points[row["step"]] = _point(row, row[name])
            for name, value in row.get("diagnostics", {}).items():
                diagnostics.setdefault(name, {})[row["step"]] = _point(row, value)
        return RunResult(
            arm=arm,
            seed=seed,
            id=run_id,
            status=summary.status,
            value=summary.bits_per_byte,
            curve=list(curve.values()),
            train=thin(list(train.values())),
            diagnostics={name: thin(list(points.values())) for name, points in diagnostics.items()},
            tokens=summary.tokens,
            flops=summary.flops,
            seconds=summary.seconds,
            tokens_per_second=summary.tokens_per_second,
            peak_memory=summary.peak_memory,
            parameters=summary.parameters,
            diverged_at=summary.diverged_at,
        )

    def _check_same(self, shared: dict[str, Any]) -> None:
        try:
            old = flatten(json.loads(self.spec_path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise UserError(f"{self.spec_path} is damaged; choose another --out") from None
        new = flatten(json.loads(json.dumps(shared)))
        for field in sorted(old.keys() | new.keys()):
            if old.get(field) != new.get(field):
                raise UserError(
                    f"--out {str(self.path)!r} belongs to a comparison with {field}={old.get(field)!r}, "
                    f"not {new.get(field)!r}; choose another --out"
                )


def _point(row: dict[str, Any], value: Any) -> Point:
    return Point(step=row["step"], tokens=row["tokens"], seconds=row["seconds"], value=value)


def _shared(spec: ComparisonSpec) -> dict[str, Any]:
    """What makes two calls the same comparison: the shared configuration, the budget and the tuning."""
    run = spec.config(spec.arm("baseline")).dump()
    del run["seed"]
    for field in EXECUTION:
        del run["training"][field]
    return {"run": run, "tune": spec.tune, "tune_seeds": spec.tune_seeds if spec.tune else 0}
