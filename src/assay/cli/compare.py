"""``assay compare`` and ``assay report``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from assay.cli import app
from assay.cli.options import Quiet, Set, assignments


@app.command()
def compare(
    spec: Annotated[Path | None, typer.Argument(help="A TOML file: arms, seeds, budget, and the table run.")] = None,
    arms: Annotated[
        str | None, typer.Option("--arms", help="Arms joined by commas, the reference first; techniques by '+'.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="How many seeds each arm is trained with.")] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", help="Budget of a run in tokens, e.g. 250k.")] = None,
    flops: Annotated[str | None, typer.Option("--flops", help="Budget of a run in FLOPs, e.g. 1e15.")] = None,
    seconds: Annotated[str | None, typer.Option("--seconds", help="Budget of a run in time, e.g. 10min.")] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            "--tune",
            metavar="FIELD=VALUE,...",
            help="Search for each arm on seeds of its own; lr takes factors of the default rate, e.g. lr=0.5,1,2.",
        ),
    ] = None,
    set_: Set = None,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Worker processes; chosen if not given.")] = None,
    runner: Annotated[str, typer.Option("--runner", help="Where runs are carried out: local or ray.")] = "local",
    out: Annotated[Path, typer.Option("--out", help="The comparison's directory.")] = Path("comparison"),
    quiet: Quiet = False,
) -> None:
    """Compare techniques with a baseline on equal terms: same data, same budget, paired by seed."""
    from assay.comparison.runners.local import import_early

    if runner == "local" and jobs != 1:
        import_early()
    from assay.comparison.compare import compare as run
    from assay.comparison.spec import parse_tune
    from assay.reports import write_reports

    result = run(
        spec,
        out=out,
        arms=[arm.strip() for arm in arms.split(",")] if arms is not None else None,
        seeds=seeds,
        tokens=tokens,
        flops=flops,
        seconds=seconds,
        tune=parse_tune(tune) if tune else None,
        values=assignments(set_),
        runner=runner,
        jobs=jobs,
        progress=not quiet,
        command=shlex.join(["assay", *sys.argv[1:]]),
    )
    write_reports(result, out)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="A comparison's directory, or its comparison.json.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write report.html instead.")] = None,
) -> None:
    """Print a comparison's table and write its report.html anew."""
    from assay.comparison.result import Comparison
    from assay.reports import write_reports

    result = Comparison.load(directory)
    write_reports(result, out or (directory if directory.is_dir() else directory.parent))
