"""``assay analyse flatness``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text

if TYPE_CHECKING:
    from torch import Tensor


@analyse_app.command("flatness")
def flatness(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Runs, Hugging Face folders or GGUF files of one architecture."),
    ],
    text: Annotated[Path, typer.Option(metavar="FILE", help="A text file like what the models were trained on.")],
    transfer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines with 'text' and 'label': the accuracy of a linear probe."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Losses this close to the lowest count as equal, in nats per token.")
    ] = 0.02,
    draws: Annotated[int, typer.Option(min=2, help="Backward passes a model; the error falls as their root.")] = 64,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text, from its beginning.")] = 4096,
    window: Annotated[int, typer.Option(min=2, help="Tokens that the model sees at once.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the labels drawn, and of the halves of the transfer data.")] = 0,
    as_json: Json = False,
) -> None:
    """The trace of the loss's Hessian: among models of equal loss, the flatter are expected to transfer better."""
    from dataclasses import asdict

    import torch

    from assay.analysis.flatness import agreement, equals
    from assay.analysis.flatness import flatness as analyse
    from assay.training.export import open_model, tokenizer_of

    content = _text(text)
    labelled = _labelled(transfer) if transfer is not None else []
    rows: list[dict[str, Any]] = []
    for path in models:
        tokenizer = tokenizer_of(path)
        windows = _windows(torch.tensor(tokenizer.encode(content)[:tokens], dtype=torch.long), window, text)
        network = open_model(path)
        found = analyse(network, windows, draws=draws, generator=torch.Generator().manual_seed(seed))
        rows.append({"model": path, **asdict(found)})
        if labelled:
            encoded = [torch.tensor(tokenizer.encode(part)[:window], dtype=torch.long) for part, _ in labelled]
            rows[-1]["accuracy"] = _accuracy(network, encoded, [label for _, label in labelled], seed)
    alike = equals([row["loss"] for row in rows], tolerance)
    flattest = min(alike, key=lambda index: rows[index]["trace"])
    agreed = agreement(*([rows[i][name] for i in alike] for name in ("trace", "accuracy"))) if labelled else None
    if as_json:
        agreed = None if agreed != agreed else agreed
        print_json({"models": rows, "equal": alike, "flattest": models[flattest], "agreement": agreed})
        return
    print_table(
        ["model", "parameters", "loss", "trace", "probe accuracy"],
        [
            [
                row["model"],
                f"{row['parameters']:,}",
                f"{row['loss']:.4f}",
                f"{row['trace']:.4g} ± {row['error']:.2g}",
                f"{row['accuracy']:.1%}" if labelled else "-",
            ]
            for row in rows
        ],
    )
    if len(models) > 1:
        print_text(f"flattest of the {len(alike)} within {tolerance:g} nats of the lowest loss: {models[flattest]}")
    if agreed is not None and agreed == agreed:
        print_text(f"rank correlation of flatness with probe accuracy among them: {agreed:+.2f}")


def _accuracy(network: Any, texts: list[Tensor], labels: list[str], seed: int) -> float:
    """Of a probe that has learnt one half of the texts, on the other half."""
    import torch

    from assay.analysis.flatness import linear_probe, text_features

    classes = sorted(set(labels))
    known = torch.tensor([classes.index(label) for label in labels])
    features = text_features(network, texts)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    train, test = order[: len(texts) // 2], order[len(texts) // 2 :]
    return linear_probe(features[train], known[train], features[test], known[test])


def _windows(ids: Tensor, window: int, path: Path) -> Tensor:
    from assay.errors import UserError

    window = min(window, len(ids))
    if window < 2:
        raise UserError(f"{str(path)!r} has {len(ids)} tokens; the loss needs at least 2")
    return ids[: len(ids) // window * window].view(-1, window)


def _labelled(path: Path) -> list[tuple[str, str]]:
    import json

    from assay.errors import UserError

    found = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        try:
            record = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: no JSON: {error.msg}") from None
        if record is None:
            continue
        if not isinstance(record, dict) or not isinstance(record.get("text"), str) or "label" not in record:
            raise UserError(f"{path}, line {number}: an object with 'text' and 'label' is needed")
        if record["text"].strip():
            found.append((record["text"], str(record["label"])))
    if len(found) < 4 or len({label for _, label in found}) < 2:
        raise UserError(f"{str(path)!r} has {len(found)} texts; a probe needs at least 4, of two labels or more")
    return found


def _text(path: Path) -> str:
    from assay.data.reading import decode, read
    from assay.errors import UserError

    text = decode(read(path))
    if not text:
        raise UserError(f"{str(path)!r} is no UTF-8 text, or is empty")
    return text
