"""``assay analyse grokking-pathways``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table


@analyse_app.command("grokking-pathways")
def grokking_pathways(
    models: Annotated[
        list[str], typer.Argument(help="Hugging Face folders of a mixture of experts: checkpoints of one training.")
    ],
    text: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Samples of a group, one a line or .jsonl ('text'); repeatable."),
    ],
    tau: Annotated[float, typer.Option(help="Share of the routing weight that a route covers.")] = 0.7,
    unit: Annotated[Literal["characters", "experts"], typer.Option(help="What an edit changes.")] = "characters",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of samples to compare, at most.")] = 1000,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a sample to look at, from its start.")] = 256,
    seed: Annotated[int, typer.Option(help="Which pairs, if there are more.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure how far samples' expert pathways are apart and how smooth they are, checkpoint by checkpoint."""
    import torch

    from assay.analysis.grokking_pathways import pathways, routing
    from assay.training.export import open_model, tokenizer_of

    groups = [(path, _samples(path)) for path in text]
    document: list[dict[str, Any]] = []
    for name in models:
        tokenizer, model = tokenizer_of(name), open_model(name)
        for path, samples in groups:
            rows = (
                torch.tensor(ids[:length], device=model.device)[None]
                for ids in tokenizer.encode_batch(samples)
                if len(ids)
            )
            found = pathways(routing(model, rows), tau=tau, unit=unit, pairs=pairs, seed=seed)
            smooth = not math.isnan(found.complexity)
            document.append(
                {"model": name, "group": str(path)}
                | dataclasses.asdict(found)
                | {
                    "complexity": found.complexity if smooth else None,
                    "consistency": found.consistency if smooth else None,
                }
            )
    if as_json:
        print_json(document)
        return
    print_table(
        ["model", "group", "samples", "distance", "complexity", "consistency", "distance by layer"],
        [
            [
                row["model"],
                row["group"],
                str(row["samples"]),
                f"{row['distance']:.2f}",
                *("undefined" if row[key] is None else f"{row[key]:.4f}" for key in ("complexity", "consistency")),
                " ".join(f"{distance:.1f}" for distance in row["layer_distances"]),
            ]
            for row in document
        ],
    )


def _samples(path: Path) -> list[str]:
    from assay.data.corpora.text import TextCorpus
    from assay.errors import UserError

    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder; a group is a file, one sample a line or .jsonl")
    texts = [document.text for document in TextCorpus(path=str(path)).documents()]
    if path.suffix != ".jsonl":
        texts = texts[0].splitlines()
    return [line for line in texts if line.strip()]
