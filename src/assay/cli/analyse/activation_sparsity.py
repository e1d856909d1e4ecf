"""``assay analyse activation-sparsity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text


@analyse_app.command("activation-sparsity")
def activation_sparsity(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="A run, a Hugging Face folder or a GGUF file. Several: checkpoints of one training, oldest first.",
        ),
    ],
    text: Annotated[Path, typer.Option(metavar="FILE", help="A text file to measure perplexity on.")],
    percent: Annotated[float, typer.Option(min=1e-3, help="The allowed rise of perplexity, in percent.")] = 1.0,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text, from its beginning.")] = 2048,
    window: Annotated[int, typer.Option(min=2, help="Tokens that the model sees at once.")] = 512,
    trained: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Training tokens of each checkpoint, e.g. 1B,2B,4B, to fit a law."),
    ] = None,
    law: Annotated[
        Literal["relu", "silu"], typer.Option(help="The law to fit: relu falls with data, silu rises.")
    ] = "relu",
    as_json: Json = False,
) -> None:
    """The share of FFN neurons that can be left out per token before perplexity rises by so many percent."""
    from assay.analysis.activation_sparsity import SparseRun, activation_sparsities, fit_data
    from assay.errors import UserError
    from assay.quantities import quantity
    from assay.training.export import open_model

    counts = [float(quantity(part)) for part in trained.split(",")] if trained is not None else []
    if trained is not None and len(counts) != len(models):
        raise UserError(f"--trained has {len(counts)} numbers for {len(models)} models; give one for each")
    windows = [_windows(path, text, tokens, window) for path in models]
    runs = [SparseRun(open_model(path), ids) for path, ids in zip(models, windows, strict=True)]
    found = activation_sparsities(runs, percent)
    fitted = fit_data(law, [n / 1e9 for n in counts], [one.activation_ratio for one in found]) if counts else None
    if as_json:
        from dataclasses import asdict

        document = [
            {
                "model": path,
                "sparsity": one.sparsity,
                "activation_ratio": one.activation_ratio,
                "perplexity_ratio": one.perplexity_ratio,
                **asdict(one),
            }
            for path, one in zip(models, found, strict=True)
        ]
        print_json({"percent": percent, "models": document, "law": asdict(fitted) if fitted else None})
        return
    if len(models) == 1:
        print_table(
            ["FFN", "kept", "threshold", "tail error"],
            [
                [layer.name, f"{layer.activation_ratio:.1%}", f"{layer.threshold:.3g}", f"{layer.cett:.3f}"]
                for layer in found[0].layers
            ],
        )
    for path, one in zip(models, found, strict=True):
        print_text(
            f"{path}: sparsity {one.sparsity:.1%} at {one.perplexity_ratio - 1:+.2%} perplexity "
            f"(loss {one.loss:.3f} nats per token, CETT {one.cett:.3f})"
        )
    if fitted is not None:
        print_text(
            f"{law} law: c {fitted.c:.3g}, alpha {fitted.alpha:.3g}, b {fitted.b:.3g}; "
            f"limit of the activation ratio {fitted.limit:.1%}, error {fitted.error:.2%}"
        )


def _windows(model: str, path: Path, tokens: int, window: int):  # type: ignore[no-untyped-def]
    """The text's first tokens as windows of one length."""
    import torch

    from assay.data.reading import decode, read
    from assay.errors import UserError
    from assay.training.export import tokenizer_of

    text = decode(read(path))
    if not text:
        raise UserError(f"{str(path)!r} is no UTF-8 text, or is empty")
    ids = torch.tensor(tokenizer_of(model).encode(text)[:tokens], dtype=torch.long)
    window = min(window, len(ids))
    if window < 2:
        raise UserError(f"{str(path)!r} has {len(ids)} tokens; perplexity needs at least 2")
    return ids[: len(ids) // window * window].view(-1, window)
