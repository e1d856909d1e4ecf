"""``assay analyse raptor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text


@analyse_app.command("raptor")
def raptor(
    model: Annotated[str, typer.Argument(help="A run, a Hugging Face folder, a GGUF file or a name on the Hub.")],
    positive: Annotated[Path, typer.Option(help="A text file, one text with the concept a line.")],
    negative: Annotated[Path, typer.Option(help="A text file, one text without it a line.")],
    seed: Annotated[int, typer.Option(help="Which texts are for training, validation and test.")] = 0,
    steer: Annotated[
        str | None, typer.Option("--steer", metavar="PROMPT", help="Continue this text, with and without steering.")
    ] = None,
    target: Annotated[
        float, typer.Option(help="Steer until the probes give this probability; below 0.5: away from the concept.")
    ] = 0.8,
    above: Annotated[float, typer.Option(help="Steer at layers with a validation accuracy above this.")] = 0.9,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each continuation.")] = 24,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Write vectors and biases as safetensors.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find a concept in each layer by a logistic probe with a tuned ridge, and steer along its vector."""
    texts = [_lines(path) for path in (positive, negative)]

    from assay import UserError
    from assay.analysis.generation import continuation
    from assay.analysis.raptor import raptor as analyse
    from assay.analysis.raptor import steered
    from assay.training.export import open_model, tokenizer_of

    if not 0 < target < 1:
        raise UserError(f"--target {target} is no probability between 0 and 1")
    if save is not None and not save.absolute().parent.is_dir():
        raise UserError(f"no folder {str(save.parent)!r} to write {save.name!r} to")
    network, tokenizer = open_model(model), tokenizer_of(model)
    found = analyse(network, tokenizer, *texts, seed=seed)
    document: dict[str, Any] = {
        "texts": {"train": found.train, "validation": found.validation, "test": found.test},
        "best_layer": found.best.layer,
        "layers": [
            {"layer": p.layer, "ridge": p.ridge, "validation": p.validation, "test": p.test} for p in found.probes
        ],
    }
    if steer is not None:
        probes = found.above(above)
        if not probes:
            raise UserError(f"no layer's validation accuracy is above {above}; --above sets a lower one")
        document["plain"] = continuation(network, tokenizer, steer, tokens)
        with steered(network, probes, target):
            document["steered"] = continuation(network, tokenizer, steer, tokens)
    if save is not None:
        found.save(save)
    if as_json:
        print_json(document)
        return
    print_table(
        ["layer", "ridge", "validation", "test"],
        [[str(p.layer), f"{p.ridge:.3g}", f"{p.validation:.3f}", f"{p.test:.3f}"] for p in found.probes],
    )
    best = found.best
    print_text(f"best by validation: layer {best.layer}, {best.test:.3f} of {found.test} test texts right")
    for name in ("plain", "steered"):
        if name in document:
            print_text(f"{name}: {document[name]!r}")


def _lines(path: Path) -> list[str]:
    from assay.data.reading import decode, read
    from assay.errors import UserError

    text = decode(read(path))
    if text is None:
        raise UserError(f"{str(path)!r} is no UTF-8 text; give one text a line")
    return [line.strip() for line in text.splitlines() if line.strip()]
