"""Printing for people and, with ``--json``, for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

_UNLIMITED = 10**6


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table fitted to the terminal; written elsewhere, its columns are as wide as their contents."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for position, heading in enumerate(headings):
        table.add_column(heading, no_wrap=all(" " not in row[position] for row in rows), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    print_text(table)


def print_text(content: str | Table) -> None:
    """To a terminal as it fits, elsewhere unwrapped."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    if sys.stdout.isatty():
        console.print(content)
    elif isinstance(content, str):
        typer.echo(content)
    else:
        console.width = _UNLIMITED
        console.width = console.measure(content).maximum
        with console.capture() as written:
            console.print(content)
        typer.echo("\n".join(line.rstrip() for line in written.get().splitlines()))
