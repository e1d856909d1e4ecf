"""``assay apply``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from assay.cli import app
from assay.cli.options import Quiet, assignments


@app.command()
def apply(
    technique: Annotated[str, typer.Argument(help="A technique that is a transform; `assay techniques` lists them.")],
    model: Annotated[str, typer.Argument(help="A run, a Hugging Face folder, a GGUF file or a name on the Hub.")],
    out: Annotated[Path, typer.Option("--out", help="The Hugging Face directory to write.")],
    text: Annotated[Path | None, typer.Option("--text", help="A text file, or a folder of them, to work on.")] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", metavar="NAME", help="A corpus instead, e.g. python-stdlib or hf:NAME.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="NAME", help="Of a model that has none: bytes or hf:FOLDER.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Set an option of the transform, e.g. tuning.steps=500."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Change a trained model by a published technique, and write it as a Hugging Face directory."""
    import assay

    given: dict[str, Any] = {
        "out": out,
        "text": text,
        "corpus": corpus,
        "tokenizer": tokenizer,
        "progress": not quiet,
    }
    options = assignments(set_)
    if twice := sorted({"technique", "model", *given} & options.keys()):
        raise assay.UserError(f"{twice[0]!r} is no option of a transform; `assay apply --help` says how it is given")
    applied = assay.apply(technique, model, **given, **options)
    if applied.before is not None and applied.after is not None:
        typer.echo(f"{applied.before:.4f} bits per byte on held-out text before, {applied.after:.4f} after")
    typer.echo(f"wrote {out}")
