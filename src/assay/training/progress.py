"""What a run shows while it goes: share done, loss, tokens per second, time left."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from assay.quantities import short


class ProgressBar:
    """A bar on standard error; silent where ``shown`` is false."""

    def __init__(self, title: str, *, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._progress.add_task(title, total=1.0, status="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, share: float, *, loss: float, tokens_per_second: float) -> None:
        self.show(share, f"loss {loss:.3f}  {short(tokens_per_second)} tokens/s")

    def show(self, share: float, status: str) -> None:
        """The share that is done, and a few words on how it stands."""
        self._progress.update(self._task, completed=min(share, 1.0), status=status)
