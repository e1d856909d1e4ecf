"""``assay analyse roofline-scaling-law``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json, Set, assignments
from assay.cli.printing import print_json, print_table, print_text


@analyse_app.command("roofline-scaling-law")
def roofline_scaling_law(
    config: Annotated[
        Path | None, typer.Argument(help="A TOML file with the network; defaults where it says nothing.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 1024,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Say what a network's latency on this machine is made of, operator by operator, and what binds each."""
    from assay.analysis import roofline
    from assay.data.windows import prepare
    from assay.training.config import read_run_config

    run = read_run_config(config, assignments(set_))
    work = roofline.Workload(batch, prompt, 1)
    shape = roofline.Shape.of(run.with_vocabulary(prepare(run.data).vocab_size).model)
    machine = roofline.measure_machine()
    bandwidth = machine.bandwidth_at(roofline.memory(shape, work))
    took = roofline.latency(shape, machine, work)
    rows = []
    for name, new, context in (("prompt", prompt, prompt), ("token", 1, prompt + 1)):
        for one in roofline.operators(shape, work, new=new, context=context):
            bound = "computing" if one.flops / machine.flops > one.bytes / bandwidth else "memory"
            rows.append(
                {"pass": name, "operator": one.name, "count": one.count, "gflop": one.count * one.flops / 1e9}
                | {"mb": one.count * one.bytes / 1e6, "bound": bound, "ms": 1e3 * one.seconds(machine, bandwidth)}
            )
    total = {"prompt_ms": took.prefill * 1e3, "token_ms": took.decode * 1e3}
    if as_json:
        print_json(total | {"operators": rows})
        return
    print_table(
        ["pass", "operator", "count", "GFLOP", "MB", "bound by", "ms"],
        [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows],
    )
    rest = 1e3 * (machine.step + shape.depth * machine.layer)
    print_text(f"{total['prompt_ms']:.3g} ms for the prompt, {total['token_ms']:.3g} ms for the first token after it")
    print_text(f"{rest:.3g} ms of each are what a pass and its layers take whatever their size")
