"""Spreads of repeated measurements, tables of them, and the files that keep them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def show(self, form: str = ".2f") -> str:
        """``1.20 (1.15 .. 1.31)``."""
        return f"{self.median:{form}} ({self.low:{form}} .. {self.high:{form}})"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Plain text in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    print(f"\n{title}")
    for first, *others in [columns, ["-" * width for width in widths], *rows]:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


def write_figures(path: Path | None, benchmark: str, *, quick: bool, **figures: Any) -> None:
    """Keep the figures beside what they were measured on and with. Does nothing without a path."""
    if path is None:
        return
    from assay.files import write_json
    from assay.training import environment

    path.parent.mkdir(parents=True, exist_ok=True)
    table = {
        "benchmark": benchmark,
        "quick": quick,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": environment.hardware(),
        "versions": {**environment.versions(), "transformers": version("transformers")},
        **figures,
    }
    write_json(path, _plain(table))
    print(f"\nwrote {path}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
