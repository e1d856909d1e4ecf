"""``assay analyse function-tokens``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text


@analyse_app.command("function-tokens")
def function_tokens(
    model: Annotated[str, typer.Argument(help="A run, a Hugging Face folder, a GGUF file or a name on the Hub.")],
    text: Annotated[Path, typer.Option(metavar="PATH", help="A text file, a folder of them, or .jsonl ('text').")],
    mass: Annotated[float, typer.Option(help="The share of all tokens that function tokens make up.")] = 0.4,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to run the model on; all are counted.")] = 20_000,
    length: Annotated[int, typer.Option(help="Tokens that the model sees at once.")] = 256,
    layer: Annotated[
        int | None, typer.Option(help="Where to look for features, from 0; default: the middle.")
    ] = None,
    sae: Annotated[
        Path | None, typer.Option("--sae", metavar="FILE", help="A sparse autoencoder, .safetensors or .npz.")
    ] = None,
    features: Annotated[
        int,
        typer.Option(min=0, help="Without --sae: fit one of this many features to the text; 0: none."),
    ] = 0,
    occurrences: Annotated[int, typer.Option(min=1, help="Occurrences per token in the fair comparison.")] = 16,
    show: Annotated[int, typer.Option(min=1, help="Tokens to list.")] = 10,
    as_json: Json = False,
) -> None:
    """Split tokens by frequency; show the loss by class, and how many features each token switches on."""
    from assay import UserError
    from assay.analysis.function_tokens import class_losses, count_tokens, equal_degrees, feature_graph, observe
    from assay.analysis.function_tokens import function_tokens as split
    from assay.analysis.function_tokens.autoencoder import fit_encoder, load_encoder
    from assay.data.corpora.text import TextCorpus
    from assay.training.export import open_model, tokenizer_of

    if sae is not None and features:
        raise UserError("--sae and --features exclude each other: take an autoencoder, or fit one")
    if layer is not None and sae is None and not features:
        raise UserError("--layer needs features to look at: --sae FILE or --features 1024")
    encoder = load_encoder(sae) if sae is not None else None
    texts = [document.text for document in TextCorpus(path=str(text)).documents()]
    tokenizer = tokenizer_of(model)
    documents = tokenizer.encode_batch(texts)
    counts = count_tokens(documents)
    function = split(counts, mass)
    network = open_model(model)
    if layer is None and (encoder is not None or features):
        layer = int(network.config.num_hidden_layers) // 2
    seen = observe(network, documents, separator=tokenizer.separator, tokens=tokens, length=length, layer=layer)
    listed: list[dict[str, Any]] = [
        {
            "id": int(counts.ids[place]),
            "token": tokenizer.decode([counts.ids[place]]),
            "count": int(counts.counts[place]),
            "mass": float(counts.mass[place]),
            "documents": float(counts.documents[place]),
        }
        for place in range(min(show, len(counts.ids)))
    ]
    document: dict[str, Any] = {
        "types": len(counts.ids),
        "function_types": len(function),
        "positions": len(seen.inputs),
        "losses": [dataclasses.asdict(group) for group in class_losses(seen, counts, function)],
        "tokens": listed,
    }
    if seen.states is not None:
        unexplained = None
        if encoder is None:
            encoder, unexplained = fit_encoder(seen.states, features=features, k=min(16, features))
        graph = feature_graph(seen.inputs, seen.states, encoder)
        place = {int(id): number for number, id in enumerate(graph.ids)}
        for row in listed:
            number = place.get(row["id"])
            row["degree"] = int(graph.degree[number]) if number is not None else 0
        ours, others = equal_degrees(seen.inputs, seen.states, encoder, function, occurrences=occurrences)
        document["features"] = {
            "layer": layer,
            "active": int(graph.edges.any(0).sum()),
            "unexplained": unexplained,
            "coverage": {str(k): float(graph.coverage[k - 1]) for k in (1, 2, 4, 10) if k <= len(graph.ids)},
            "equal_occurrences": {"occurrences": occurrences, "function": ours, "content": others},
        }
    if as_json:
        print_json(document)
        return
    _print(document)


def _print(document: dict[str, Any]) -> None:
    print_text(f"{document['function_types']} of {document['types']} token types are function tokens")
    typer.echo()
    print_table(
        ["predicting", "positions", "loss", "share", "from frequency"],
        [
            [
                f"{group['current']} → {group['following']}",
                str(group["count"]),
                f"{group['loss']:.3f}",
                f"{group['share']:.1%}",
                f"{group['frequency_loss']:.3f}",
            ]
            for group in document["losses"]
        ],
    )
    typer.echo()
    found = document.get("features")
    print_table(
        ["token", "count", "mass", "documents", *(["features"] if found else [])],
        [
            [repr(row["token"]), str(row["count"]), f"{row['mass']:.1%}", f"{row['documents']:.1%}"]
            + ([str(row["degree"])] if found else [])
            for row in document["tokens"]
        ],
    )
    if found:
        typer.echo()
        if found["unexplained"] is not None:
            print_text(f"the fitted autoencoder leaves {found['unexplained']:.1%} of the variance unexplained")
        shares = ", ".join(f"{k}: {share:.1%}" for k, share in found["coverage"].items())
        print_text(
            f"of {found['active']} features behind layer {found['layer']}, the most frequent switch on {shares}"
        )
        equal = found["equal_occurrences"]
        print_text(
            f"at {equal['occurrences']} occurrences each: {equal['function']:.1f} features per function token, "
            f"{equal['content']:.1f} per content token"
        )
