"""Options that several commands share, and what they mean."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from assay.config import parse_assignment

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the configuration, e.g. model.norm=seednorm."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def assignments(texts: list[str] | None) -> dict[str, Any]:
    """``["model.depth=6"]`` as ``{"model.depth": 6}``. Raises ``UserError`` for what is no assignment."""
    return dict(parse_assignment(text) for text in texts or [])
