"""``assay analyse gradient-spectra``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text


@analyse_app.command("gradient-spectra")
def gradient_spectra(
    model: Annotated[str, typer.Argument(help="A run, a Hugging Face folder or a GGUF file.")],
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Data sets to compare: JSON lines with 'instruction' (perhaps 'input') and 'output'.",
        ),
    ],
    length: Annotated[
        int | None, typer.Option(min=1, help="Cut responses to this many tokens and drop shorter ones, to compare.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of each file, from its beginning.")] = 50,
    longest: Annotated[int, typer.Option(min=2, help="Tokens of a sample, the rest is cut off.")] = 4096,
    layers: Annotated[bool, typer.Option("--layers", help="Show each layer and projection.")] = False,
    as_json: Json = False,
) -> None:
    """Judge instruction data by the gradients that it causes: those of good data have a higher effective rank."""
    from assay.analysis.gradient_spectra import PROJECTIONS, cut_to, read_samples
    from assay.analysis.gradient_spectra import gradient_spectra as analyse
    from assay.errors import UserError
    from assay.training.export import open_model, tokenizer_of

    tokenizer = tokenizer_of(model)
    sets = [read_samples(path, tokenizer, longest) for path in files]
    sets = [(cut_to(one, length) if length is not None else one)[:samples] for one in sets]
    for path, some in zip(files, sets, strict=True):
        if not some:
            raise UserError(f"{str(path)!r} has no sample with a response of {length or 1} tokens or more")
    network = open_model(model)
    found = [analyse(network, some) for some in sets]
    if as_json:
        print_json([_document(path, one) for path, one in zip(files, found, strict=True)])
        return
    if layers:
        for path, one in zip(files, found, strict=True):
            print_text(str(path))
            print_table(
                ["layer", *(f"{p} {what}" for what in ("norm", "rank") for p in PROJECTIONS)],
                [
                    [str(layer), *(f"{value:.3g}" for value in (*norms, *ranks))]
                    for layer, (norms, ranks) in enumerate(zip(one.nuclear_norm, one.effective_rank, strict=True))
                ],
            )
    print_table(
        ["data", "samples", "response tokens", "nuclear norm", "effective rank", "adjacent layers"],
        [
            [
                str(path),
                str(len(one.scores)),
                f"{one.tokens:.0f}",
                f"{one.scores[:, 0].mean():.3g}",
                f"{one.scores[:, 1].mean():.1f}",
                f"{_mean(one.adjacent):+.3f}",
            ]
            for path, one in zip(files, found, strict=True)
        ],
    )
    lengths = [one.tokens for one in found]
    if max(lengths) > 1.1 * min(lengths):
        print_text(f"lengths differ, and both numbers depend on them; --length {int(min(lengths))} makes them equal")


def _mean(table: Any) -> float:
    import numpy as np

    return float(np.nanmean(table)) if np.isfinite(table).any() else float("nan")


def _document(path: Path, found: Any) -> dict[str, Any]:
    import numpy as np

    tables = {}
    for name in ("nuclear_norm", "effective_rank", "adjacent", "same", "scores"):
        table = np.asarray(getattr(found, name), dtype=object)
        table[table != table] = None
        tables[name] = table.tolist()
    return {"file": str(path), "response_tokens": found.tokens, **tables}
