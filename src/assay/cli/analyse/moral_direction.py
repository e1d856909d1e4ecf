"""``assay analyse moral-direction``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text


@analyse_app.command("moral-direction")
def moral_direction(
    encoder: Annotated[
        str, typer.Argument(help="A folder of a sentence encoder of transformers, with weights in safetensors.")
    ],
    phrases: Annotated[
        Path | None,
        typer.Option(help="A text file, one phrase a line, as it follows 'to': kill time. None: the method's verbs."),
    ] = None,
    sentences: Annotated[
        bool, typer.Option("--sentences", help="The lines are whole sentences, scored without questions.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="A causal language model, to continue --prompt with and without the filter.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    threshold: Annotated[float, typer.Option(help="The filter keeps tokens that bring the text above this.")] = 0.0,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each continuation.")] = 16,
    as_json: Json = False,
) -> None:
    """Score phrases as right or wrong along one direction of a sentence encoder, and filter text by it."""
    from assay.analysis import moral_direction as analysis
    from assay.errors import UserError

    if (model is None) != (prompt is None):
        raise UserError("--model and --prompt go together: the model continues the prompt")
    if sentences and phrases is None:
        raise UserError("--sentences needs --phrases FILE, with one sentence a line")
    texts = list(analysis.VERBS) if phrases is None else _lines(phrases)
    found = analysis.moral_direction(analysis.SentenceEncoder(encoder))
    scores = (found.sentences if sentences else found.phrases)(texts).tolist()
    told = analysis.told_apart(found)
    document: dict[str, Any] = {
        "explained": found.explained,
        "verbs_told_apart": told,
        "scores": [{"text": text, "score": score} for text, score in zip(texts, scores, strict=True)],
    }
    if model is not None and prompt is not None:
        from assay.training.export import open_model, tokenizer_of

        network, tokenizer = open_model(model), tokenizer_of(model)
        document["plain"] = analysis.continuation(network, tokenizer, prompt, tokens)
        document["filtered"] = analysis.continuation(network, tokenizer, prompt, tokens, found, threshold)
    if as_json:
        print_json(document)
        return
    print_table(["text", "score"], [[text, f"{score:+.3f}"] for text, score in zip(texts, scores, strict=True)])
    print_text(
        f"the direction explains {found.explained[0]:.1%} of the variance (the next {found.explained[1]:.1%}); "
        f"it tells do from don't in {told:.1%} of pairs of the method's verbs"
    )
    for name in ("plain", "filtered"):
        if name in document:
            print_text(f"{name}: {document[name]!r}")


def _lines(path: Path) -> list[str]:
    from assay.data.reading import decode, read
    from assay.errors import UserError

    text = decode(read(path))
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{str(path)!r} has no lines of UTF-8 text; write one phrase a line")
    return lines
