"""``assay analyse linear-mode-connectivity``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table

Model = Annotated[str, typer.Argument(help="A run, a Hugging Face folder or a GGUF file.")]


@analyse_app.command("linear-mode-connectivity")
def linear_mode_connectivity(
    model_a: Model,
    model_b: Annotated[str, typer.Argument(help="Another model of the same architecture.")],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="Text to compute losses on (UTF-8).")],
    points: Annotated[int, typer.Option(help="Points of the whole line, ends included.")] = 11,
    windows: Annotated[int, typer.Option(help="Windows of text to use at most, from the start of the file.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 256,
    layers: Annotated[bool, typer.Option(help="Whether to move each layer alone, too.")] = True,
    predict: Annotated[bool, typer.Option("--predict", help="Predict barriers from curvature, too.")] = False,
    fork: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What both were trained from, for the angle between them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the loss barrier on the straight line between two models, and that of each layer."""
    from torch import Tensor, nn
    from torch.nn import functional as F

    from assay.analysis.linear_mode_connectivity import connectivity, fork_angle
    from assay.data.windows import text_windows
    from assay.training.export import open_model, tokenizer_of

    batches = list(text_windows(text, tokenizer_of(model_a), length=length, count=windows).split(1))
    first, second = open_model(model_a), open_model(model_b)
    angle = fork_angle(open_model(fork), first, second) if fork is not None else None

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        return F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:])

    found = connectivity(first, second, loss, batches, points=points, layers=layers, predict=predict)
    if as_json:
        document = dataclasses.asdict(found) | {"barriers": found.line.barriers, "barrier": found.line.barrier}
        for layer, entry in zip(found.layers, document["layers"], strict=True):
            entry |= {
                "barrier_from_first": layer.from_first.barrier,
                "barrier_from_second": layer.from_second.barrier,
            }
        print_json(document | {"fork_angle": angle, "windows": len(batches), "length": length})
        return
    typer.echo(f"barrier {found.line.barrier:.4f} nats per token, distance {found.distance:.4g}")
    if found.predicted is not None:
        typer.echo(f"predicted from curvature, half way: {found.predicted:.4f}")
    if angle is not None:
        typer.echo(f"fork angle {angle:.1f} degrees")
    typer.echo()
    print_table(
        ["share", "loss", "barrier"],
        [
            [f"{share:.3g}", f"{value:.4f}", f"{barrier:.4f}"]
            for share, value, barrier in zip(
                found.line.fractions, found.line.losses, found.line.barriers, strict=True
            )
        ],
    )
    if found.layers:
        typer.echo()
        print_table(
            ["layer", "A → B", "B → A", *(["predicted"] if predict else [])],
            [
                [layer.name, f"{layer.from_first.barriers[1]:.4f}", f"{layer.from_second.barriers[1]:.4f}"]
                + ([f"{layer.predicted:.4f}"] if layer.predicted is not None else [])
                for layer in found.layers
            ],
        )
