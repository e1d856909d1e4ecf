"""``assay analyse class-prototype-cleaner``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("features", "labels", "losses")


@analyse_app.command("class-prototype-cleaner")
def class_prototype_cleaner(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A safetensors file with 'features' (a row per example), 'labels' and 'losses' (a number per row).",
        ),
    ],
    high: Annotated[float, typer.Option(help="Labels that the mixture trusts more than this are positives.")] = 0.8,
    low: Annotated[float, typer.Option(help="Labels that it trusts less than this are negatives.")] = 0.2,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Write both probabilities of each label there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge which labels of a classification data set are wrong, by a prototype of each class."""
    from safetensors.torch import save_file

    from assay.analysis.class_prototype_cleaner import clean_labels
    from assay.errors import UserError
    from assay.files import disk_errors

    if save is not None and not save.absolute().parent.is_dir():
        raise UserError(f"no folder {str(save.parent)!r} to write {save.name!r} to")
    features, labels, losses = _parts(file)
    found = clean_labels(features, labels, losses, high=high, low=low)
    if save is not None:
        with disk_errors(save):
            scores = {"posterior": found.posterior, "probability": found.probability}
            save_file({name: score.contiguous() for name, score in scores.items()}, save)
    rows = []
    for k in labels.unique().tolist():
        of_class = labels == k
        rows.append(
            {
                "class": k,
                "labels": int(of_class.sum()),
                "wrong_by_mixture": int((found.posterior[of_class] <= 0.5).sum()),
                "wrong_by_prototypes": int((~found.clean[of_class]).sum()),
            }
        )
    if as_json:
        print_json({"classes": rows, "wrong": int((~found.clean).sum()), "labels": len(labels)})
        return
    print_table(
        ["class", "labels", "wrong by mixture", "wrong by prototypes"],
        [[str(value) for value in row.values()] for row in rows],
    )
    print_text(f"{int((~found.clean).sum())} of {len(labels)} labels are judged wrong")


def _parts(path: Path) -> list[Tensor]:
    """Raises ``UserError`` unless the file has the three tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from assay.data.reading import read
    from assay.errors import UserError

    try:
        tensors = load(read(path))
    except (SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{str(path)!r} is no safetensors file: {reason}") from None
    if missing := [name for name in PARTS if name not in tensors]:
        raise UserError(f"{str(path)!r} has no tensor {missing[0]!r}; it needs {', '.join(PARTS)}")
    return [tensors[name] for name in PARTS]
