"""``assay analyse el2n-grand``: which training examples to keep, from the logits of a few early checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text

Logits = Annotated[
    list[Path],
    typer.Argument(
        metavar="LOGITS...",
        help="Logits of all training examples, one file for each run: .npy, .csv or .safetensors, a row for each.",
    ),
]
Labels = Annotated[Path, typer.Option("--labels", help="The labels, one number a line, in the same order.")]
Keep = Annotated[float, typer.Option("--keep", help="Share of the examples to keep: those that score highest.")]
DropHighest = Annotated[
    float, typer.Option("--drop-highest", help="Share of the examples, the very highest, to pass over as noise.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Write the numbers of the kept examples, from 0, one a line.")
]


@analyse_app.command("el2n-grand")
def el2n_grand(
    logits: Logits,
    labels: Labels,
    kept: Keep = 0.7,
    drop_highest: DropHighest = 0.0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Score training examples by the norm of their error (EL2N), and keep the hard ones."""
    from assay.analysis.el2n_grand import el2n, keep, mean_score, read_labels, read_logits
    from assay.files import write_text

    wanted = read_labels(labels)
    scores = mean_score([el2n(read_logits(path), wanted) for path in logits])
    chosen = keep(scores, kept, drop_highest=drop_highest)
    if out is not None:
        write_text(out, "".join(f"{index}\n" for index in chosen.tolist()))
    if as_json:
        print_json({"runs": len(logits), "scores": scores.tolist(), "kept": chosen.tolist()})
        return
    highest = scores.argsort(descending=True, stable=True)[:10].tolist()
    print_table(
        ["example", "label", "EL2N"], [[str(at), str(int(wanted[at])), f"{scores[at]:.4f}"] for at in highest]
    )
    print_text(
        f"\n{len(chosen)} of {len(scores)} examples kept, scores {scores[chosen].min():.4f} to "
        f"{scores[chosen].max():.4f}; mean of {len(logits)} run{'s' if len(logits) > 1 else ''}"
    )
