"""``assay analyse output-signatures``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text


@analyse_app.command("output-signatures")
def output_signatures(
    model: Annotated[str, typer.Argument(help="A run, a Hugging Face folder, a GGUF file or a name on the Hub.")],
    positive: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Texts known to be of the kind (seen in training, wrong), one a line."),
    ],
    negative: Annotated[Path, typer.Option(metavar="FILE", help="Texts known not to be, one a line.")],
    score: Annotated[
        Path | None, typer.Option("--score", metavar="FILE", help="Texts to judge by what was learned, one a line.")
    ] = None,
    top: Annotated[int, typer.Option(help="Largest probabilities to read of each position.")] = 1000,
    length: Annotated[int, typer.Option(help="Tokens to read of each text, from its start.")] = 100,
    share: Annotated[float, typer.Option(help="Share of least likely tokens that min-k averages.")] = 0.2,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the labelled texts.")] = 60,
    seed: Annotated[int, typer.Option(help="Which texts are held out, and the network's start.")] = 0,
    as_json: Json = False,
) -> None:
    """Learn from labelled texts to tell texts by the model's next-token probabilities; compare with fixed scores.

    Each file is a text file or .jsonl ('text'). A fifth of the texts of each label are held out for the figures.
    """
    import torch

    from assay.analysis.output_signatures import auroc, baselines, fit, scores, signatures
    from assay.errors import UserError
    from assay.training.export import open_model, tokenizer_of

    kinds = [_texts(path) for path in (positive, negative)]
    new = _texts(score) if score is not None else []
    for path, texts in zip((positive, negative), kinds, strict=True):
        if len(texts) < 10:
            raise UserError(f"{str(path)!r} has {len(texts)} texts; at least 10 of each label are needed")
    tokenizer, network = tokenizer_of(model), open_model(model)

    def read(texts: list[str]) -> Any:
        ids = [row.tolist() for row in tokenizer.encode_batch(texts)]
        return signatures(network, ids, separator=tokenizer.separator, top=top, length=length)

    x = read([*kinds[0], *kinds[1]])
    labels = torch.arange(len(x)) < len(kinds[0])
    generator = torch.Generator().manual_seed(seed)
    shuffled = [
        part[torch.randperm(len(part), generator=generator)]
        for part in torch.arange(len(x)).split(list(map(len, kinds)))
    ]
    test = torch.cat([part[: len(part) // 5] for part in shuffled])
    training = torch.cat([part[len(part) // 5 :] for part in shuffled])
    fixed = baselines(x[test], share)
    net = fit(x[training], labels[training], epochs=epochs, seed=seed)
    found = {"los-net": scores(net, x[test]), **fixed}
    document: dict[str, Any] = {
        "texts": {"positive": len(kinds[0]), "negative": len(kinds[1]), "held_out": len(test)},
        "auc": {name: auroc(values, labels[test]) for name, values in found.items()},
    }
    if new:
        document["scores"] = scores(net, read(new)).sigmoid().tolist()
    if as_json:
        print_json(document)
        return
    print_table(["score", "AUC"], [[name, f"{value:.3f}"] for name, value in document["auc"].items()])
    print_text(f"on {len(test)} texts that were held out")
    if new:
        typer.echo()
        print_table(
            ["probability", "text"],
            [[f"{value:.3f}", text[:60]] for value, text in zip(document["scores"], new, strict=True)],
        )


def _texts(path: Path) -> list[str]:
    from assay.data.corpora.text import TextCorpus
    from assay.errors import UserError

    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder; a file with one text a line, or .jsonl, is wanted")
    texts = [document.text for document in TextCorpus(path=str(path)).documents()]
    if path.suffix != ".jsonl":
        texts = texts[0].splitlines()
    return [text for text in texts if text.strip()]
