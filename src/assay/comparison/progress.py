"""What a comparison shows while it goes: runs done, share of all training done, time left."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from assay.comparison.runners import Job
from assay.training.budget import Budget
from assay.training.config import RunConfig


class ComparisonProgress:
    """A bar on standard error that reads the runs' own metrics files, wherever the runs are carried out."""

    def __init__(self, title: str, jobs: Sequence[Job], *, shown: bool) -> None:
        self._budgets = {Path(job.directory): Budget.of(RunConfig.parse(job.config)) for job in jobs if shown}
        self._shares: dict[Path, float] = {}
        self._complete = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%  {task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._shown = shown
        self._jobs = len(jobs)
        self._task = self._progress.add_task(title, total=max(1, len(jobs)), status=self._status())
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._progress.start()
        if self._shown:
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._shown:
            self._watcher.join()
        self._progress.stop()

    def done(self, job: Job) -> None:
        self._complete += 1
        self._shares[Path(job.directory)] = 1.0
        self._show()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            for path, budget in self._budgets.items():
                if self._shares.get(path, 0.0) < 1.0 and (row := _last_row(path / "metrics.jsonl")):
                    self._shares[path] = min(budget.spent(row["step"], row["seconds"]), 0.99)
            self._show()

    def _show(self) -> None:
        self._progress.update(self._task, completed=sum(self._shares.values()), status=self._status())

    def _status(self) -> str:
        return f"{self._complete}/{self._jobs} runs"


def _last_row(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 1000))
            lines = file.read().split(b"\n")
        row = json.loads(lines[-2])
        return row if isinstance(row, dict) else None
    except (OSError, ValueError, IndexError):
        return None
