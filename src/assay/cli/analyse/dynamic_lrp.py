"""``assay analyse dynamic-lrp``: which tokens of a text carry what a model says next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text

if TYPE_CHECKING:
    from assay.data.tokenizers import Tokenizer


@analyse_app.command("dynamic-lrp")
def dynamic_lrp_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a Hugging Face folder or a GGUF file.")],
    text: Annotated[str, typer.Option(help="The text whose next token is explained.")],
    token: Annotated[
        str | None, typer.Option(help="Explain this token, with its space, instead of the likeliest one.")
    ] = None,
    softmax: Annotated[
        Literal["attnlrp", "identity", "gate"],
        typer.Option(help="AttnLRP's rule; relevance passed on as it is; or attention weights as constants."),
    ] = "attnlrp",
    gamma: Annotated[
        float, typer.Option(min=0.0, help="γ of the products with weights: more to what agrees with the result.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Trace a prediction back to the tokens, by layer-wise relevance propagation along the computation graph."""
    import torch

    from assay.analysis.dynamic_lrp import token_relevance
    from assay.training.export import open_model, tokenizer_of

    tokenizer = tokenizer_of(model)
    ids = [int(id) for id in tokenizer.encode(text)]
    chosen = None if token is None else _single(tokenizer, token)
    found = token_relevance(open_model(model), torch.tensor(ids), token=chosen, softmax=softmax, gamma=gamma)
    explained = int(found.output[0, -1].argmax()) if chosen is None else chosen
    relevance = found.inputs[0].tolist()
    reached = sum(map(abs, relevance)) or 1.0
    tokens = [tokenizer.decode([id]) for id in ids]
    document: dict[str, Any] = {
        "explained": tokenizer.decode([explained]),
        "tokens": tokens,
        "relevance": relevance,
        "parameters": found.parameters,
        "conservation_error": found.conservation_error,
        "coverage": found.coverage,
        "operations": sum(found.operations.values()) + sum(found.unknown.values()),
        "unknown": found.unknown,
    }
    if as_json:
        print_json(document)
        return
    print_text(f"relevance to {document['explained']!r} after {text!r}\n")
    print_table(
        ["token", "relevance", "share"],
        [[repr(one), f"{r:+.5f}", f"{r / reached:+.1%}"] for one, r in zip(tokens, relevance, strict=True)],
    )
    print_text(
        f"\ntokens {sum(relevance):.4f}, parameters {sum(found.parameters.values()):.4f} of {found.started:.4f}; "
        f"conservation error {found.conservation_error:.1e}\n"
        f"rules for {found.coverage:.2%} of {document['operations']:,} operations" + _named(found.unknown)
    )


def _named(unknown: dict[str, int]) -> str:
    return "; none for " + ", ".join(f"{name} ({count})" for name, count in unknown.items()) if unknown else ""


def _single(tokenizer: Tokenizer, text: str) -> int:
    from assay.errors import UserError

    ids = [int(id) for id in tokenizer.encode(text)]
    if len(ids) != 1:
        parts = ", ".join(repr(tokenizer.decode([id])) for id in ids)
        raise UserError(f"--token {text!r} is {len(ids)} tokens ({parts or 'none'}), not one")
    return ids[0]
