"""A comparison as a table in the terminal, and one line of plain words per arm."""

from __future__ import annotations

import statistics

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from assay.comparison.result import ArmResult, Comparison
from assay.reports.numbers import MISSING, count, decimals, fixed, probability, signed
from assay.reports.sentences import describe

_STYLES = {
    "better": "green",
    "worse": "red",
    "diverged more": "red",
    "diverged less": "green",
    "no difference shown": "dim",
    "one seed: no interval": "yellow",
    "no finite pair": "yellow",
}


def table(comparison: Comparison, console: Console | None = None) -> None:
    """Print the arms as a table, then a line for each.

    In a pipe or a file the table is as wide as it needs to be: nothing is cut or wrapped.
    """
    console = console or Console()
    grid = _grid(comparison, ascii_only=console.options.ascii_only)
    needed = Measurement.get(console, console.options.update(max_width=10_000), grid).maximum
    width = console.width
    if not console.is_terminal:
        console.width = max(width, needed)
    try:
        console.print(grid)
    finally:
        if not console.is_terminal:
            console.width = width
    for arm in comparison.arms[1:]:
        line = Text(arm.name, style="bold")
        line.append(_typeable(f": {describe(arm, comparison)}"), style="not bold")
        console.print(line, soft_wrap=not console.is_terminal, highlight=False)


def _grid(comparison: Comparison, *, ascii_only: bool) -> Table:
    level = f"{100 * (1 - comparison.alpha):g} %"
    grid = Table(title=Text(comparison.title), title_justify="left", header_style="bold")
    titles = (
        "arm",
        comparison.unit,
        f"difference ({level} interval)",
        "adjusted p",
        "verdict",
        "tokens/s",
        "diverged",
    )
    for title in titles:
        left = title in ("arm", "verdict")
        grid.add_column(Text(title), justify="left" if left else "right", overflow="fold")
    for arm in comparison.arms:
        cells = [Text(_typeable(cell, ascii_only)) for cell in _row(arm, comparison)]
        if arm.compared:
            cells[3].stylize(_STYLES[arm.compared.verdict])
        grid.add_row(Text(arm.name), *cells)
    return grid


def _row(arm: ArmResult, comparison: Comparison) -> list[str]:
    """The cells after the arm's name."""
    digits = decimals(comparison)
    value = fixed(arm.mean, digits)
    if arm.standard_deviation is not None:
        value += f" ± {fixed(arm.standard_deviation, digits)}"
    found = arm.compared
    difference = signed(found.mean if found else None, digits)
    if found and found.low is not None:
        difference += f" ({signed(found.low, digits)} to {signed(found.high, digits)})"
    speeds = [run.tokens_per_second for run in arm.runs]
    return [
        value,
        difference,
        probability(found.p_adjusted if found else None),
        found.verdict if found else "baseline",
        count(statistics.fmean(speeds)) if speeds else MISSING,
        f"{arm.diverged} of {len(arm.runs)}",
    ]


def _typeable(text: str, ascii_only: bool = False) -> str:
    """Signs that a shell can search for, and a terminal without UTF-8 can show."""
    text = text.replace("−", "-").replace(MISSING, "-")
    return text.replace("±", "+/-") if ascii_only else text
