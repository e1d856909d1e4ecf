"""Reports: a comparison in the terminal and as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from assay.comparison.result import Comparison

if TYPE_CHECKING:
    from rich.console import Console


def write_reports(comparison: Comparison, directory: str | Path, console: Console | None = None) -> Path:
    """Print the table of a comparison and write its ``report.html``; the path of that page."""
    from assay.reports.html import write_report
    from assay.reports.terminal import table

    table(comparison, console)
    return write_report(comparison, directory)
