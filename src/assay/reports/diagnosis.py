"""A diagnosis in the terminal, and as ``findings.json`` and ``report.html``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.diagnostics.diagnosis import NAME, Diagnosis, finite, treatments
from assay.files import disk_errors, write_json, write_text
from assay.reports.diagnosis_html import html

PLACES = 3
"""Of a finding that are shown in the terminal."""


def write_diagnosis(diagnoses: Sequence[Diagnosis], directory: str | Path, console: Console | None = None) -> Path:
    """Print the findings of a model, or of two side by side, and write ``findings.json`` and ``report.html``.

    Returns the path of the page. Raises ``AssayError`` if the disk refuses.
    """
    folder = Path(directory)
    page, document = html(diagnoses), _document(diagnoses)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, document)
    write_text(folder / "report.html", page)
    console = console or Console()
    for diagnosis in diagnoses:
        print_findings(diagnosis, console)
    if len(diagnoses) == 2:
        print_changes(diagnoses[0], diagnoses[1], console)
    console.print(f"wrote {folder / 'report.html'} and {folder / NAME}", highlight=False, soft_wrap=True)
    return folder / "report.html"


def _document(diagnoses: Sequence[Diagnosis]) -> dict[str, Any]:
    first, *others = diagnoses
    if not others:
        return first.document()
    return {**first.document(), "other": others[0].document(), "changes": finite(changes(first, others[0]))}


def print_findings(diagnosis: Diagnosis, console: Console) -> None:
    """The findings, worst first, each with where it is and what tries to treat it."""
    findings = diagnosis.findings
    about = diagnosis.about
    count = f"{len(findings)} findings" if len(findings) != 1 else "1 finding"
    console.print(
        f"\n{diagnosis.model}: {about['architecture']}, {about['layers']} layers, "
        f"{about['parameters'] / 1e6:,.1f}M parameters, {about['tokens']} tokens: {count}",
        highlight=False,
        soft_wrap=True,
    )
    for number, finding in enumerate(findings, 1):
        factor = "broken" if math.isinf(finding.excess) else f"{finding.excess:.3g} × the threshold"
        console.print(Text.assemble((f"\n{number}. {finding.symptom}", "bold"), f" ({finding.diagnostic}, {factor})"))
        lines = [("", finding.says), ("means", finding.means), ("threshold", _threshold(finding))]
        if finding.where:
            shown = "; ".join(map(place, finding.where[:PLACES]))
            more = f"; and {len(finding.where) - PLACES} more" if len(finding.where) > PLACES else ""
            lines.append(("where", shown + more))
        treating = treatments(finding)
        for index, treatment in enumerate(treating[:PLACES]):
            lines.append(("try" if not index else "", f"{treatment.command}  # {treatment.standing}"))
        if len(treating) > PLACES:
            lines.append(("", f"and {len(treating) - PLACES} more, in {NAME}"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
        table.add_column(style="dim", justify="right", min_width=9)
        table.add_column(overflow="fold")
        for label, line in lines:
            table.add_row(label, Text(line))
        console.print(table)
    for name, reason in diagnosis.skipped.items():
        console.print(Text(f"not measured: {name}: {reason}", style="dim"))


def _threshold(finding: Any) -> str:
    return f"{finding.threshold:.4g}: {finding.source}"


def place(where: Mapping[str, Any]) -> str:
    """``{"layer": 3, "head": 1, "share": 0.8}`` as ``layer 3, head 1, share 0.8``."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in where.items()
    )


def changes(first: Diagnosis, second: Diagnosis) -> list[dict[str, Any]]:
    """The numbers that both have, with their ratio, those that changed most first; 1 where both are zero."""
    before, after = first.scalars(), second.scalars()
    rows = []
    for name in before.keys() & after.keys():
        a, b = before[name], after[name]
        ratio = 1.0 if a == b else b / a if a else math.inf
        rows.append({"measure": name, "first": a, "second": b, "ratio": ratio if math.isfinite(ratio) else None})
    return sorted(rows, key=lambda row: (-_distance(row["ratio"]), row["measure"]))


def _distance(ratio: float | None) -> float:
    """How far from 1, either way; a change of sign or from zero is farthest."""
    return math.inf if ratio is None or ratio <= 0 else abs(math.log(ratio))


def print_changes(first: Diagnosis, second: Diagnosis, console: Console) -> None:
    """What differs between two models: findings that came and went, and the numbers side by side."""
    ours, theirs = ({finding.symptom for finding in one.findings} for one in (first, second))
    for title, found in (("gone", ours - theirs), ("new", theirs - ours)):
        if found:
            console.print(f"\n{title} in the second model: {', '.join(sorted(found))}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("measure", "first", "second", "ratio"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for row in changes(first, second):
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.3g}"
        table.add_row(row["measure"], f"{row['first']:.4g}", f"{row['second']:.4g}", ratio)
    console.print(table)
