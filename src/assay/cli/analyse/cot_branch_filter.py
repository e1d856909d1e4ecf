"""``assay analyse cot-branch-filter``: the reasoning traces that branch most, and a file without them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text

Traces = Annotated[Path, typer.Argument(metavar="TRACES", help="JSON lines, each with a trace of reasoning.")]
Field = Annotated[str, typer.Option("--field", help="The key of the trace; GSM8K's is answer.")]
Keep = Annotated[float, typer.Option("--keep", help="Share of the traces to keep: those that branch least.")]
Keywords = Annotated[
    list[str] | None, typer.Option("--keyword", help="A word that opens an alternative; give several times.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Write the lines that are kept, unchanged and in order.")]


@analyse_app.command("cot-branch-filter")
def cot_branch_filter(
    traces: Traces,
    field: Field = "answer",
    kept: Keep = 0.9,
    keyword: Keywords = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Count the steps of reasoning traces that open an alternative, and drop the traces with most of them."""
    from assay.analysis.cot_branch_filter import KEYWORDS, branching, keep_least, read_traces, steps
    from assay.files import write_text

    lines, texts = read_traces(traces, field)
    scores = [branching(text, keyword or KEYWORDS) for text in texts]
    chosen = keep_least(scores, kept)
    dropped = sorted(set(range(len(texts))) - set(chosen))
    longest = set(keep_least([-len(steps(text)) for text in texts], len(dropped) / len(texts)) if dropped else [])
    if out is not None:
        write_text(out, "".join(lines[place] + "\n" for place in chosen))
    if as_json:
        print_json({"branching": scores, "kept": chosen})
        return
    rows = {"all": list(range(len(texts))), "kept": chosen, "dropped": dropped}
    print_table(
        ["", "traces", "branching", "steps"],
        [
            [name, str(len(row)), _mean(scores, row), _mean([len(steps(t)) for t in texts], row)]
            for name, row in rows.items()
        ],
    )
    if dropped:
        print_text(
            f"\n{len(longest & set(dropped))} of the {len(dropped)} dropped are among the {len(dropped)} longest"
        )


def _mean(values: list[float] | list[int], places: list[int]) -> str:
    return f"{sum(values[place] for place in places) / len(places):.3f}" if places else "–"
