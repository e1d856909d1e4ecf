"""``assay train`` and ``assay export``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from assay.cli import app
from assay.cli.options import Quiet, Set, assignments


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="A TOML file; defaults where it says nothing.")] = None,
    set_: Set = None,
    out: Annotated[Path, typer.Option("--out", help="The run's directory.")] = Path("run"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train one model."""
    from assay.training.loop import train as run
    from assay.training.run_directory import Summary

    summary: Summary = run(config, out=out, values=assignments(set_), resume=resume, progress=not quiet)
    if int(os.environ.get("RANK", 0)) > 0:
        return
    if summary.status == "diverged":
        typer.echo(f"diverged at step {summary.diverged_at}: the loss is no longer finite; see {out}/metrics.jsonl")
        return
    typer.echo(
        f"{summary.bits_per_byte:.4f} bits per byte after {summary.tokens:,} tokens in {summary.seconds:.1f} s "
        f"({summary.tokens_per_second:,.0f} tokens/s); run in {out}"
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's directory, or any model that assay loads.")],
    out: Annotated[Path, typer.Option("--out", help="The Hugging Face directory to write.")],
) -> None:
    """Write a trained model as a Hugging Face directory."""
    import assay

    typer.echo(f"wrote {assay.export(run, out)}")
