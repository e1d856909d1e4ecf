"""Options that several commands share, and what they mean."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from assay.config import parse_assignment

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the configuration, e.g. model.norm=seednorm."),
]
Area = Annotated[str | None, typer.Option(help="Only this area of the catalogue.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def assignments(texts: list[str] | None) -> dict[str, Any]:
    """``["model.depth=6"]`` as ``{"model.depth": 6}``. Raises ``UserError`` for what is no assignment."""
    return dict(parse_assignment(text) for text in texts or [])
