"""``assay analyse crosscoder``."""

from __future__ import annotations

import math
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json, Quiet
from assay.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from assay.analysis.crosscoder import Latents

SHOWN = 10


@analyse_app.command("crosscoder")
def crosscoder(
    model_a: Annotated[str, typer.Argument(help="A run, a Hugging Face folder or a GGUF file.")],
    model_b: Annotated[str, typer.Argument(help="Another, of the same width and tokenizer: a fine-tuned one, say.")],
    layer: Annotated[int, typer.Option(help="Compare the residual stream behind this layer, counted from 0.")],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="Text to compare on (UTF-8).")],
    latents: Annotated[int, typer.Option(help="Size of the dictionary.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for crosscoder and report.")],
    kind: Annotated[Literal["batch-topk", "l1"], typer.Option(help="What makes codes sparse.")] = "batch-topk",
    k: Annotated[int, typer.Option("--k", help="Latents kept per token (batch-topk).")] = 100,
    sparsity: Annotated[float, typer.Option(help="Weight of the L1 penalty (l1).")] = 0.041,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 2000,
    batch_size: Annotated[int, typer.Option(help="Tokens per step.")] = 512,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-4,
    length: Annotated[int, typer.Option(help="Tokens per window of text.")] = 256,
    seed: Annotated[int, typer.Option(help="Decides the start and the order of the text.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a crosscoder on two models, and tell the latents of one model only from false ones.

    The last tenth of the text is kept out of training, and what is reported is measured on it.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from assay.analysis.crosscoder import Crosscoder, read_latents, residual_pairs, scales_of, train
    from assay.analysis.crosscoder.dictionary import check_free
    from assay.data.windows import text_windows
    from assay.errors import UserError
    from assay.training.export import open_model, tokenizer_of

    check_free(out.expanduser())
    if batch_size < 1:
        raise UserError(f"batch-size is {batch_size}; 1 is the least")
    windows, others = (text_windows(text, tokenizer_of(model), length=length) for model in (model_a, model_b))
    if not torch.equal(windows, others):
        raise UserError("the two models' tokenizers cut the text differently; a crosscoder needs the same tokens")
    if len(windows) < 2:
        raise UserError(f"{str(text)!r} has 1 window of {length} tokens; training and report need one each")
    held_out = max(1, len(windows) // 10)
    models = open_model(model_a), open_model(model_b)

    def pairs(part: slice, seed: int | None) -> Any:
        return residual_pairs(*models, windows[part], layer=layer, batch_size=batch_size, seed=seed)

    dictionary = Crosscoder(models[0].config.get_text_config().hidden_size, latents, kind=kind, k=k, seed=seed)
    dictionary.scale = scales_of(islice(pairs(slice(-held_out), seed), 8))
    with Progress(console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task("training", total=steps)

        def tell(step: int, loss: float) -> None:
            bar.update(task, completed=step + 1, description=f"loss {loss:.3f}")

        train(dictionary, pairs(slice(-held_out), seed), steps=steps, lr=lr, sparsity=sparsity, report=tell)
    found = read_latents(dictionary, pairs(slice(-held_out, None), None))
    report = document(found)
    dictionary.save(out, report)
    if as_json:
        print_json({"crosscoder": str(out), **report})
        return
    _print(found, out)


def document(found: Latents) -> dict[str, Any]:
    """The report as JSON has it; None where a latent is never active."""
    only = {which: found.of(which) for which in ("first", "second", "shared")}
    columns = {
        "difference": found.difference,
        "tokens": found.scaling.count,
        "nu_error": found.nu_error,
        "nu_reconstruction": found.nu_reconstruction,
    }
    return {
        "explained": list(found.explained),
        "active": found.active,
        "latents": {which: int(inside.sum()) for which, inside in only.items()},
        "genuine": {which: int((only[which] & found.genuine).sum()) for which in ("first", "second")},
        "dead": int((found.scaling.count == 0).sum()),
        "columns": {
            name: [value if math.isfinite(value) else None for value in column.tolist()]
            for name, column in columns.items()
        },
    }


def _print(found: Latents, out: Path) -> None:
    print_table(
        ["class", "latents", "genuine"],
        [
            ["A only", str(int(found.of("first").sum())), str(int((found.of("first") & found.genuine).sum()))],
            ["B only", str(int(found.of("second").sum())), str(int((found.of("second") & found.genuine).sum()))],
            ["shared", str(int(found.of("shared").sum())), "–"],
            ["between", str(int((found.scaling.count > 0).sum() - _classified(found))), "–"],
            ["never active", str(int((found.scaling.count == 0).sum())), "–"],
        ],
    )
    typer.echo()
    only = (found.of("first") | found.of("second")).nonzero().flatten()
    chosen = only[found.scaling.count[only].argsort(descending=True)][:SHOWN].tolist()
    if chosen:
        print_table(
            ["latent", "of", "tokens", "Δ", "ν error", "ν reconstruction", "genuine"],
            [
                [
                    str(latent),
                    "AB"[int(found.scaling.own[latent])],
                    str(int(found.scaling.count[latent])),
                    f"{found.difference[latent]:.2f}",
                    f"{found.nu_error[latent]:.2f}",
                    f"{found.nu_reconstruction[latent]:.2f}",
                    "yes" if found.genuine[latent] else "no",
                ]
                for latent in chosen
            ],
        )
        typer.echo()
    first, second = found.explained
    typer.echo(
        f"explained variance {first:.3f} of A, {second:.3f} of B; {found.active:.1f} latents per token; in {out}"
    )


def _classified(found: Latents) -> int:
    return sum(int(found.of(which).sum()) for which in ("first", "second", "shared"))
