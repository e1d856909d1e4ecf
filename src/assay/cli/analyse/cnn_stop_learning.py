"""``assay analyse cnn-stop-learning``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_text


@analyse_app.command("cnn-stop-learning")
def cnn_stop_learning(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A CSV file: a row per epoch, a column per layer with the mean standard deviation of its output.",
        ),
    ],
    decimals: Annotated[int, typer.Option(help="To how many decimals the numbers are rounded.")] = 2,
    epochs: Annotated[int, typer.Option(help="Over how many epochs no number may change.")] = 5,
    as_json: Json = False,
) -> None:
    """Say after which epoch a training could have stopped, from the spread of each layer's output."""
    from assay.analysis.cnn_stop_learning import stop_epoch
    from assay.data.reading import decode, read
    from assay.errors import UserError

    lines = (decode(read(file)) or "").splitlines()
    means = []
    for number, line in enumerate(lines, start=1):
        try:
            means.append([float(cell) for cell in line.split(",")])
        except ValueError:
            if number > 1:
                raise UserError(f"{str(file)!r}, line {number}: not a number for each layer") from None
    if not means:
        raise UserError(f"{str(file)!r} has no row of numbers")
    found = stop_epoch(means, decimals=decimals, epochs=epochs)
    if as_json:
        print_json({"epochs": len(means), "layers": len(means[0]), "stop": found})
    elif found is None:
        print_text(f"no reason to stop in {len(means)} epochs of {len(means[0])} layers")
    else:
        print_text(f"stop after epoch {found + 1} of {len(means)}")
