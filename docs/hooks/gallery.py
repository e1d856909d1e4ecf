"""The gallery: a page for each technique and each paper with measured claims, from the catalogue and the evidence.

MkDocs calls ``on_files``; ``pages`` is what it adds.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from assay.catalog.evidence import Measurement, evidence
from assay.catalog.records import Claim, Paper, builtin, symptoms
from assay.catalog.techniques import commands
from assay.config import assign
from assay.registry import Registry
from assay.slots import Component, Pattern
from assay.training.config import RunConfig
from figures import outcome_figure

MARKS = {"supported": "✔ supported", "not supported": "✘ not supported"}
"""How a verdict is shown; others as they are."""


def pages() -> dict[str, str]:
    """Markdown by path below ``docs``."""
    shown = [paper for paper in builtin().papers.values() if is_shown(paper)]
    return {"gallery/index.md": index(shown), **{f"gallery/{paper.slug}.md": page(paper) for paper in shown}}


def is_shown(paper: Paper) -> bool:
    return paper.status == "available" or any(claim.measure for claim in paper.claims)


def index(papers: list[Paper]) -> str:
    lines = [
        "# Gallery",
        "",
        "Every technique that can be applied by name, and what was measured of its claims. "
        "[Claims](../claims.md) says how.",
    ]
    for area in sorted({paper.area for paper in papers}):
        lines += ["", f"## {area}", "", "| technique | what it does | claims |", "| --- | --- | --- |"]
        for paper in (paper for paper in papers if paper.area == area):
            verdicts = "<br>".join(f"{claim.id.partition('/')[2]}: {_verdicts(claim)}" for claim in paper.claims)
            lines.append(f"| [{paper.slug}]({paper.slug}.md) | {_cell(paper.summary)} | {verdicts or '–'} |")
    return "\n".join(lines) + "\n"


def page(paper: Paper) -> str:
    links = [paper.authors, paper.date if paper.date and not paper.date.startswith("--") else None]
    if paper.arxiv:
        links.append(f"[arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})")
    lines = [f"# {paper.slug}", "", f"*{paper.title}*  ", " · ".join(link for link in links if link), ""]
    lines += [f"{paper.summary}.", ""]
    if paper.treats:
        lines += ["Treats:", "", *(f"- **{one}**: {symptoms()[one]}" for one in paper.treats), ""]
    for title, text in definitions(paper).items():
        lines += [f"## {title}", "", text, ""]
    if how := commands(paper):
        lines += ["## Use", "", "```console", *(f"$ {command}" for command in how), "```", ""]
    if paper.claims:
        lines += ["## Claims", ""]
        for claim in paper.claims:
            lines += _claim(claim)
    return "\n".join(lines)


def definitions(paper: Paper) -> dict[str, str]:
    """The docstrings of the files that define what the paper's patch names, by heading."""
    found: dict[str, str] = {}
    for component in components(paper):
        module = inspect.getmodule(component.registry[component.name])
        if module is not None and module.__doc__:
            title, _, text = inspect.cleandoc(module.__doc__).partition("\n")
            found.setdefault(title.rstrip("."), markdown(text.strip("\n")))
    return found


def components(paper: Paper) -> list[Component[Any]]:
    """What the patch puts into slots; without a patch that is enough, what is registered under the paper's slug."""
    if paper.patch is None or paper.command is not None:
        return [Component(registry, paper.slug) for registry in registries() if paper.slug in registry]
    config = RunConfig.parse(assign({}, paper.patch))
    found: dict[int, Component[Any]] = {}
    for field in paper.patch:
        value: Any = config
        for part in field.split("."):
            value = getattr(value, part, None)
            if isinstance(value, Component | Pattern):
                break
        for one in value.components if isinstance(value, Pattern) else [value]:
            if isinstance(one, Component):
                found.setdefault(id(one), one)
    return list(found.values())


def registries() -> list[Registry[Any]]:
    """Every registry of the package's modules that are loaded."""

    found: dict[str, Registry[Any]] = {}
    for name, module in sorted(sys.modules.items()):
        if name.startswith("assay."):
            found |= {one.kind: one for one in vars(module).values() if isinstance(one, Registry)}
    measuring = {"way", "property", "experiment", "benchmark", "runner"}
    return [registry for kind, registry in found.items() if kind not in measuring]


def markdown(docstring: str) -> str:
    """Code in single backquotes, as Markdown has it; indented formulas are code blocks already."""
    return docstring.replace("``", "`")


def _claim(claim: Claim) -> list[str]:
    says = claim.says[0].upper() + claim.says[1:]
    lines = [f"### {claim.id}", "", f"{says}.", "", f"Published: {claim.published}.", ""]
    if claim.falsified_by:
        lines += [f"What would speak against it: {claim.falsified_by}.", ""]
    if claim.seen:
        lines += [f"Seen before the rule was written: {claim.seen}.", ""]
    if not claim.measure:
        return [*lines, "Not measurable here.", ""]
    known = evidence(claim.id)
    for scale in claim.scales:
        measurement = known.scales.get(scale) if known is not None else None
        if measurement is None:
            lines += [f"At scale `{scale}`: open. `assay claims run {claim.id} --scale {scale}` measures it.", ""]
        else:
            lines += _measurement(scale, measurement)
    return lines


def _measurement(scale: str, measurement: Measurement) -> list[str]:
    verdict = MARKS.get(measurement.verdict, measurement.verdict)
    spent = ", ".join(f"{_number(value)} {name}" for name, value in measurement.budget.items())
    machine = ", ".join(str(measurement.hardware[key]) for key in ("gpu", "processor") if key in measurement.hardware)
    rows = ["| quantity | mean | 95 % interval | expected | |", "| --- | --- | --- | --- | --- |"]
    for outcome in measurement.outcomes:
        interval = "–" if outcome.low is None else f"{_number(outcome.low)} to {_number(outcome.high)}"
        mark = MARKS.get(outcome.verdict, outcome.verdict)
        cells = [outcome.quantity, _number(outcome.mean), interval, outcome.region, mark]
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    figures = [figure for outcome in measurement.outcomes if (figure := outcome_figure(outcome, measurement))]
    return [
        f"At scale `{scale}`: **{verdict}** ({', '.join(part for part in (spent, machine) if part)}; "
        f"{measurement.created:%Y-%m-%d}).",
        "",
        *rows,
        "",
        *(line for figure in figures for line in (figure, "")),
    ]


def _verdicts(claim: Claim) -> str:
    if not claim.measure:
        return "not measurable here"
    known = evidence(claim.id)
    measured = {} if known is None else known.scales
    return ", ".join(f"{MARKS.get(one.verdict, one.verdict)} ({scale})" for scale, one in measured.items()) or "open"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those that MkDocs found."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files
