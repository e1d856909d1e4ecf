"""``assay design``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from assay.cli import app
from assay.cli.options import Json, Quiet, Set, assignments
from assay.cli.printing import print_json, print_table, print_text

if TYPE_CHECKING:
    from assay.analysis.roofline import Candidate


@app.command()
def design(
    latency_ms: Annotated[
        float, typer.Option("--latency-ms", help="The most that prompt and new tokens may take together.")
    ],
    config: Annotated[
        Path | None, typer.Argument(help="A TOML file: the largest network of the grid, data and training.")
    ] = None,
    memory_mb: Annotated[
        float | None,
        typer.Option("--memory-mb", help="The most that weights, keys and values may take, in 10⁶ bytes."),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="A folder of finished runs to learn from, in place of a grid.")
    ] = None,
    count: Annotated[int, typer.Option("--count", help="How many networks the grid has.")] = 16,
    batch: Annotated[int, typer.Option("--batch", help="Sequences at once.")] = 1,
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens of a prompt.")] = 1024,
    new: Annotated[int, typer.Option("--new", help="Tokens that are generated after it.")] = 16,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="What the network computes with.")
    ] = "float32",
    confirm: Annotated[
        int, typer.Option("--confirm", metavar="N", help="Train the proposal beside so many rivals of its latency.")
    ] = 0,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Worker processes; chosen if not given.")] = None,
    set_: Set = None,
    out: Annotated[Path, typer.Option("--out", help="Where grid and design go.")] = Path("design"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Propose the network of least loss that is fast enough on this machine (roofline-scaling-law)."""
    import torch

    from assay.analysis import roofline
    from assay.config import assign, read_toml
    from assay.errors import UserError
    from assay.files import disk_errors, write_json

    if runs is not None and (config is not None or set_):
        raise UserError("--runs brings a configuration with it; CONFIG and --set are for a grid of its own")
    if not latency_ms > 0 or (memory_mb is not None and not memory_mb > 0) or confirm < 0:
        raise UserError("--latency-ms and --memory-mb are above 0, and --confirm is not below")
    precision = getattr(torch, dtype)
    work = roofline.Workload(batch, prompt, new, precision.itemsize)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    training: dict[str, Any] = {"jobs": jobs, "progress": not quiet}
    if runs is None:
        base = assign(read_toml(config) if config is not None else {}, assignments(set_))
        runs = roofline.train_grid(base, out / "grid", count=count, **training)
    machine = roofline.measure_machine(dtype=precision, device=device or "cpu")
    limit = memory_mb * 1e6 if memory_mb is not None else None
    found = roofline.design(runs, machine, work, seconds=latency_ms / 1e3, memory=limit)
    document: dict[str, Any] = {
        "machine": dataclasses.asdict(machine),
        "workload": dataclasses.asdict(work),
        "law": {"runs": found.runs, "features": found.law.features, "r2": found.law.r2, "rank": found.law.rank},
        "considered": found.considered,
        "kept": len(found.kept),
        "best": _row(found.best),
        "front": [_row(one) for one in found.front],
    }
    if confirm:
        checked = roofline.confirm(found, out / "confirm", count=confirm, **training)
        document["confirmation"] = {
            "rank": checked.rank,
            "place": checked.place,
            "trained": [_row(one) | {"measured": value} for one, value in checked.trained],
        }
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json(out / "design.json", document)
    roofline.write_config(found, out / "design.toml")
    if as_json:
        print_json(document)
        return
    _print(document, found, out)


def _row(one: Candidate) -> dict[str, Any]:
    m = one.model
    return {
        "depth": m.depth,
        "hidden_size": m.hidden_size,
        "num_heads": m.num_heads,
        "num_kv_heads": m.num_kv_heads,
        "intermediate_size": m.intermediate_size,
        "bits_per_byte": one.loss,
        "prefill_ms": one.latency.prefill * 1e3,
        "decode_ms": one.latency.decode * 1e3,
        "memory_mb": one.memory / 1e6,
    }


def _print(document: dict[str, Any], found: Any, out: Path) -> None:
    law = document["law"]
    print_text(
        f"law of {law['runs']} runs, each left out once: R² {law['r2']:.2f}, rank correlation {law['rank']:.2f}; "
        f"{document['kept']} of {document['considered']} networks keep to the limits. The Pareto front:"
    )
    _table(document["front"])
    if "confirmation" in document:
        checked = document["confirmation"]
        print_text("trained anew, the proposal first:")
        _table(checked["trained"])
        print_text(
            f"the proposal is number {checked['place']} of {len(checked['trained'])}; "
            f"rank correlation of predicted and measured {checked['rank']:.2f}"
        )
    print_text(f"wrote {out / 'design.toml'}; next: assay train {out / 'design.toml'} --out run")


def _table(rows: list[dict[str, Any]]) -> None:
    names = ["depth", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size"]
    numbers = ["bits_per_byte", "prefill_ms", "decode_ms", "memory_mb"]
    numbers += ["measured"] if "measured" in rows[0] else []
    shown = [
        [str(row[name]) for name in names]
        + ["diverged" if row[name] is None else f"{row[name]:.4g}" for name in numbers]
        for row in rows
    ]
    print_table([*names, *numbers], shown)
