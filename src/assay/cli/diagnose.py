"""``assay diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.cli import app
from assay.cli.options import Quiet


@app.command()
def diagnose(
    model: Annotated[str, typer.Argument(help="A run, a Hugging Face folder, a GGUF file or a name on the Hub.")],
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="Another model, to be shown beside the first.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="A directory for findings.json and report.html.")] = Path(
        "diagnosis"
    ),
    text: Annotated[
        list[Path] | None, typer.Option("--text", metavar="FILE", help="A text; each file given is a domain.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", metavar="NAME", help="A corpus instead, e.g. python-stdlib.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="NAME", help="Of a model that has none: bytes or hf:FOLDER.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="How many tokens go through the model.")] = "4096",
    length: Annotated[int | None, typer.Option(help="Tokens in a window; 512, or the most it takes.")] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAMES", help="These diagnostics, by name, with commas.")
    ] = None,
    gradients: Annotated[bool, typer.Option("--gradients", help="Those that need gradients, too.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find what is wrong with a model, where, and which techniques treat it."""
    from assay.diagnostics.diagnosis import check_folder
    from assay.reports.diagnosis import write_diagnosis
    from assay.training.diagnose import diagnose as run

    check_folder(out)
    names = [name.strip() for name in only.split(",") if name.strip()] if only is not None else None
    found = [
        run(
            one,
            text=text or None,
            corpus=corpus,
            tokenizer=tokenizer,
            tokens=tokens,
            length=length,
            only=names,
            gradients=gradients,
            progress=not quiet,
        )
        for one in (model, other)
        if one is not None
    ]
    write_diagnosis(found, out)
