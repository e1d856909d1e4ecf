"""``assay analyse checkpoint-selection``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text

if TYPE_CHECKING:
    from assay.analysis.checkpoint_selection import Pair
    from assay.training.run_directory import RunDirectory


@analyse_app.command("checkpoint-selection")
def checkpoint_selection(
    run: Annotated[str, typer.Argument(help="A run that kept checkpoints: training.keep.")],
    pairs: Annotated[
        Path, typer.Option(metavar="FILE", help="JSON lines with 'query' and 'passage', its answer; 16 or more.")
    ],
    steps: Annotated[int, typer.Option(min=0, help="Of tuning each checkpoint as a retriever; 0: as it is.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Tunings of each checkpoint.")] = 2,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate of the tuning.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs of a step, each other's negatives.")] = 16,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a text that are read, from its beginning.")] = 128,
    as_json: Json = False,
) -> None:
    """Score a run's kept checkpoints by retrieval, and say whether the lowest loss is the one to keep."""
    from dataclasses import asdict

    from assay.analysis.checkpoint_selection import choose, score
    from assay.training.export import load, run_of, tokenizer_of

    directory = run_of(run)
    kept = _kept(directory)
    tuning, choosing, held_out = _split(_pairs(pairs, tokenizer_of(run).encode, length))
    found = [
        score(load(path), tuning, choosing, held_out, steps=steps, seeds=seeds, lr=lr, batch_size=batch_size)
        for path, _ in kept
    ]
    numbers, losses = [int(path.name) for path, _ in kept], [loss for _, loss in kept]
    best = max(found, key=lambda one: one.choosing)
    chosen = choose(numbers, losses, [one.choosing for one in found], spread=best.spread)
    regret = found[chosen.by_score].held_out - found[chosen.by_loss].held_out
    if as_json:
        rows = [
            {"step": step, "bits_per_byte": loss, **asdict(one)}
            for step, loss, one in zip(numbers, losses, found, strict=True)
        ]
        summary = {name: None if value != value else value for name, value in asdict(chosen).items()}
        print_json({"checkpoints": rows, "choice": summary, "held_out_regret": regret})
        return
    print_table(
        ["checkpoint", "bits per byte", "nDCG@10", "held out", "chosen by"],
        [
            [
                path.name,
                f"{loss:.4f}",
                f"{one.choosing:.4f} ± {one.spread:.4f}",
                f"{one.held_out:.4f}",
                ", ".join(n for n, i in (("score", chosen.by_score), ("loss", chosen.by_loss)) if i == place) or "-",
            ]
            for place, ((path, loss), one) in enumerate(zip(kept, found, strict=True))
        ],
    )
    print_text(f"chosen by score rather than by loss, on held-out pairs: {regret:+.4f} nDCG@10")
    print_text(f"the chosen checkpoint is {chosen.lead:.0f} steps before that of the lowest loss")
    if chosen.correlation == chosen.correlation:
        print_text(f"rank correlation of score and falling loss: {chosen.correlation:+.2f}")


def _kept(directory: RunDirectory) -> list[tuple[Path, float]]:
    """The kept checkpoints in order, each with the bits per byte of the whole validation text."""
    from assay.errors import UserError

    losses = {row["step"]: row["bits_per_byte"] for row in directory.metrics() if "bits_per_byte" in row}
    places = sorted(directory.checkpoints_path.glob("[0-9]*")) if directory.checkpoints_path.is_dir() else []
    kept = [(path, losses[int(path.name)]) for path in places if int(path.name) in losses]
    if len(kept) < 2:
        raise UserError(
            f"{str(directory.path)!r} has {len(kept)} kept checkpoints, and a choice needs 2; "
            "train with --set training.keep=[0.25,0.5,0.75,1]"
        )
    return kept


def _pairs(path: Path, encode: Callable[[str], Any], length: int) -> list[Pair]:
    import json

    import torch

    from assay.data.reading import decode, read
    from assay.errors import UserError

    content = decode(read(path))
    found = []
    for number, line in enumerate((content or "").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            raise UserError(f"{path}, line {number}: no JSON; each line is one object") from None
        values = [record.get(name) for name in ("query", "passage")] if isinstance(record, dict) else []
        texts = [value for value in values if isinstance(value, str) and value]
        if len(texts) < 2:
            raise UserError(f"{path}, line {number}: an object with the strings 'query' and 'passage' is needed")
        query, passage = (torch.tensor(encode(text)[:length], dtype=torch.long) for text in texts)
        found.append((query, passage))
    if len(found) < 16:
        raise UserError(f"{str(path)!r} has {len(found)} pairs; tuning, choosing and reporting need at least 16")
    return found


def _split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Half of them tunes, a quarter chooses and a quarter is held out, in a fixed random order."""
    import torch

    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    half, most = len(pairs) // 2, len(pairs) * 3 // 4
    shuffled = [pairs[i] for i in order]
    return shuffled[:half], shuffled[half:most], shuffled[most:]
