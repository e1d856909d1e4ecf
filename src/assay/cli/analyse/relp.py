"""``assay analyse relp``: which activations carry a behaviour, by patching and its two estimates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text


@analyse_app.command("relp")
def relp_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a Hugging Face folder or a GGUF file.")],
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompt pairs as JSON lines: clean, corrupted, answer and distractor (with its space), all prompts "
            "of one length in tokens. Without it, indirect objects.",
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many pairs about indirect objects.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Which pairs about indirect objects.")] = 0,
    sites: Annotated[str, typer.Option(help="What is patched.")] = "residual,attention,mlp",
    rules: Annotated[str, typer.Option(help="Rules of RelP; attention is one more.")] = "norm,activation,product",
    truth: Annotated[
        bool, typer.Option("--truth/--no-truth", help="Patch activations too: a pass per layer, site and position.")
    ] = True,
    top: Annotated[int, typer.Option(min=1, help="How many places to show.")] = 10,
    as_json: Json = False,
) -> None:
    """Find the activations that carry a behaviour: activation patching, attribution patching and RelP."""
    from assay.analysis.patching.pairs import EncodedPairs, read_pairs
    from assay.analysis.patching.relevance import check_rules
    from assay.analysis.patching.sites import check_sites
    from assay.analysis.relp import relp
    from assay.data.synthetic.indirect_object import indirect_objects
    from assay.training.export import open_model, tokenizer_of

    chosen, by = _names(sites), _names(rules)
    check_sites(chosen)
    check_rules(by)
    tokenizer = tokenizer_of(model)
    texts = indirect_objects(seed, prompts, tokenizer) if pairs is None else read_pairs(pairs)
    encoded = EncodedPairs.encode(texts, tokenizer)
    found = relp(open_model(model), encoded, sites=chosen, rules=by, truth=truth)
    tokens = [tokenizer.decode([id]) for id in encoded.clean[0].tolist()]
    if as_json:
        print_json(
            {
                "prompts": [vars(text) for text in texts],
                "tokens": tokens,
                "first_difference": found.first,
                "logit_difference": {"clean": found.clean, "corrupted": found.corrupted},
                "agreement": [
                    {key: None if value != value else value for key, value in vars(row).items()}
                    for row in found.agreement()
                ],
                "effects": {
                    method: {site: values.tolist() for site, values in effects.items()}
                    for method, effects in found.effects.items()
                },
            }
        )
        return
    print_text(
        f"{len(texts)} pairs, such as {texts[0].clean!r} for {texts[0].corrupted!r}; logit difference "
        f"{found.clean:.2f} clean, {found.corrupted:.2f} corrupted\n"
    )
    if truth:
        print_table(
            ["site", "method", "Pearson", "Spearman"],
            [
                [row.site, row.method, _number(row.pearson), _number(row.spearman)]
                for row in sorted(found.agreement(), key=lambda row: chosen.index(row.site))
            ],
        )
        print_text("")
    print_table(
        ["site", "layer", "position", "token", *found.effects],
        [
            [
                *(place.site, str(place.layer), str(place.position), repr(tokens[place.position])),
                *(f"{value:.3f}" for value in place.effects.values()),
            ]
            for place in found.strongest(top)
        ],
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
