"""``assay analyse neural-collapse``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from torch import Tensor


@analyse_app.command("neural-collapse")
def neural_collapse(
    features: Annotated[
        list[Path],
        typer.Argument(
            metavar="FEATURES...",
            help="Features, a row per example (.npy or .safetensors); one file per checkpoint or layer.",
        ),
    ],
    labels: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help="The class of each row, from 0 (.npy or .safetensors).")
    ],
    classifiers: Annotated[
        list[Path] | None,
        typer.Option(
            "--classifier",
            metavar="FILE",
            help="The weight, a row per class, and bias that read the features (.safetensors), or the weight alone "
            "(.npy). As many as there are files of features, in their order.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how far the features of a classifier are from neural collapse (NC1 to NC4, 0 at collapse)."""
    from assay.analysis.neural_collapse import neural_collapse as measure
    from assay.errors import UserError

    if classifiers and len(classifiers) != len(features):
        raise UserError(
            f"there are {len(features)} files of features and {len(classifiers)} classifiers; give as many"
        )
    classes = _one(labels, "labels")
    rows = []
    for number, path in enumerate(features):
        parts = _tensors(classifiers[number]) if classifiers else {}
        weight = _part(classifiers[number], parts, "weight") if classifiers else None
        found = measure(_one(path, "features"), classes, weight, parts.get("bias"))
        rows.append({"features": str(path)} | dataclasses.asdict(found))
    if as_json:
        print_json(rows)
        return
    print_table(
        ["features", "NC1", "spread", "NC2", "NC3", "NC4"],
        [
            [str(row["features"]), *(_shown(row[name]) for name in ("nc1", "spread", "nc2", "nc3", "nc4"))]
            for row in rows
        ],
    )


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:.4g}"


def _one(path: Path, name: str) -> Tensor:
    return _part(path, _tensors(path), name)


def _part(path: Path, tensors: dict[str, Tensor], name: str) -> Tensor:
    """The tensor of that name, or the only one."""
    from assay.errors import UserError

    if name in tensors:
        return tensors[name]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise UserError(f"{str(path)!r} has {len(tensors)} tensors and none is named {name!r}")


def _tensors(path: Path) -> dict[str, Tensor]:
    """Raises ``UserError`` unless the file is .npy or .safetensors with numbers in it."""
    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from assay.data.reading import read
    from assay.errors import UserError

    if path.suffix not in (".npy", ".safetensors"):
        raise UserError(f"{str(path)!r} is neither .npy nor .safetensors")
    content = read(path)
    try:
        if path.suffix == ".safetensors":
            return load(content)
        return {"": torch.from_numpy(np.load(path, allow_pickle=False))}
    except (SafetensorError, ValueError, TypeError, EOFError, OSError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())[:120]}") from None
