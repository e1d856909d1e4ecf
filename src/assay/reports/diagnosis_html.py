"""A diagnosis, or two side by side, as one HTML file that opens anywhere: every number is in a table."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from assay.catalog.records import symptoms
from assay.diagnostics import Finding, diagnostics
from assay.diagnostics.diagnosis import Diagnosis, Treatment, treatments
from assay.reports import numbers
from assay.reports.diagnosis_plots import plots
from assay.reports.html import environment, plotly
from assay.reports.plots import COLOURS

if TYPE_CHECKING:
    from markupsafe import Markup

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})")


@dataclasses.dataclass(frozen=True)
class Shown:
    """A finding as the page shows it."""

    finding: Finding
    severity: str
    definition: str
    columns: Sequence[str]
    treatments: Sequence[Treatment]


@dataclasses.dataclass(frozen=True)
class Model:
    """A diagnosis under a short name and in a colour of its own."""

    name: str
    colour: str
    diagnosis: Diagnosis
    findings: Sequence[Shown]


@dataclasses.dataclass(frozen=True)
class Group:
    """The scalars of a diagnostic, a value for each model, under what it says of itself."""

    diagnostic: str
    title: str
    note: str
    rows: Sequence[tuple[str, Sequence[float | None]]]


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers that a plot shows, or that are behind one."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def html(diagnoses: Sequence[Diagnosis]) -> str:
    """The page, with plotly.js inside. Figures are JSON in which plotly has escaped ``<``, ``>`` and ``/``."""
    from markupsafe import Markup

    from assay.reports.diagnosis import changes

    models = [
        Model(name, colour, diagnosis, [_shown(finding) for finding in diagnosis.findings])
        for name, colour, diagnosis in zip(_names(diagnoses), COLOURS, diagnoses, strict=False)
    ]
    drawn = plots(diagnoses, [model.name for model in models])
    figures = {
        f"figure-{number}-{'all' if model is None else model}": figure
        for number, plot in enumerate(drawn)
        for model, figure in plot.figures.items()
    }
    template = environment()
    template.filters |= {"measured": measured, "linked": linked, "coded": coded}
    return template.get_template("diagnosis.html.jinja").render(
        models=models,
        headlines=_headlines(models),
        groups=[
            (name, list(group)) for name, group in itertools.groupby(enumerate(drawn), lambda item: item[1].group)
        ],
        outcomes=_outcomes(models),
        changes=changes(*diagnoses) if len(diagnoses) == 2 else [],
        scalars=_scalars(diagnoses),
        tables=[(model, _tables(model.diagnosis)) for model in models],
        figures={name: Markup(figure.to_json()) for name, figure in figures.items()},
        heights={name: figure.layout.height for name, figure in figures.items()},
        plotly=plotly(),
    )


def measured(value: Any) -> str:
    """A number with four significant digits; text as it is."""
    if value is None or not isinstance(value, int | float) or isinstance(value, bool):
        return numbers.plain(value)
    if math.isnan(value):
        return numbers.MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if value == 0 or isinstance(value, int) or 1e3 <= size < 1e7:
        return f"{value or 0:,.0f}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def linked(text: str) -> Markup:
    """Text in which arXiv numbers are links."""
    from markupsafe import Markup, escape

    parts = _ARXIV.split(text)
    link = '<a href="https://arxiv.org/abs/{0}" rel="noreferrer">arXiv:{0}</a>'
    return Markup("").join(Markup(link).format(part) if i % 2 else escape(part) for i, part in enumerate(parts))


def coded(text: str) -> Markup:
    """Text in which what stands in double backquotes is code."""
    from markupsafe import Markup, escape

    parts = text.split("``")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def _shown(finding: Finding) -> Shown:
    known = math.isfinite(finding.excess)
    return Shown(
        finding,
        f"{measured(float(f'{finding.excess:.3g}'))} × the threshold" if known else "broken",
        symptoms().get(finding.symptom, ""),
        list(dict.fromkeys(key for place in finding.where for key in place)),
        treatments(finding),
    )


def _names(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """Names, of absolute paths the last parts, as few as tell them apart; those of the same name are numbered."""
    names = [diagnosis.model for diagnosis in diagnoses]
    if len(set(names)) < len(names):
        return [f"{name} ({number})" for number, name in enumerate(names, 1)]
    if not all(PurePath(name).is_absolute() for name in names):
        return names
    for length in range(1, max(len(PurePath(name).parts) for name in names)):
        short = [str(PurePath(*PurePath(name).parts[-length:])) for name in names]
        if len(set(short)) == len(short):
            return short
    return names


def _headlines(models: Sequence[Model]) -> list[str]:
    if len(models) == 1:
        (model,) = models
        if not model.findings:
            return ["No finding: nothing that was measured passes its threshold."]
        worst = model.findings[0].finding
        return [f"{_count(model)}. The worst: {worst.says}."]
    ours, theirs = ({shown.finding.symptom for shown in model.findings} for model in models)
    lines = ["; ".join(f"{_count(model)} in {model.name}" for model in models) + "."]
    for word, found in (("gone", ours - theirs), ("new", theirs - ours)):
        if found:
            lines.append(f"In {models[1].name}, {word}: {', '.join(sorted(found))}.")
    return lines


def _count(model: Model) -> str:
    count = len(model.findings)
    return f"{count} finding{'' if count == 1 else 's'}"


def _outcomes(models: Sequence[Model]) -> list[dict[str, Any]]:
    """What findings came and went: by symptom and diagnostic, the worst excess in each model."""
    if len(models) != 2:
        return []
    worst: list[dict[tuple[str, str], Shown]] = [{} for _ in models]
    for found, model in zip(worst, models, strict=True):
        for shown in model.findings:
            found.setdefault((shown.finding.symptom, shown.finding.diagnostic), shown)
    return [
        {
            "symptom": key[0],
            "diagnostic": key[1],
            "severities": [found[key].severity if key in found else None for found in worst],
            "verdict": "new" if key not in worst[0] else "gone" if key not in worst[1] else "in both",
        }
        for key in dict.fromkeys([*worst[0], *worst[1]])
    ]


def _scalars(diagnoses: Sequence[Diagnosis]) -> list[Group]:
    groups = []
    for name in dict.fromkeys(name for diagnosis in diagnoses for name in diagnosis.results):
        results = [diagnosis.results.get(name) for diagnosis in diagnoses]
        keys = dict.fromkeys(key for result in results if result for key in result.scalars)
        rows = [(key, [result.scalars.get(key) if result else None for result in results]) for key in keys]
        groups.append(Group(name, *_documented(name), rows))
    return groups


def _documented(name: str) -> tuple[str, str]:
    """The first line of what a diagnostic's module says, and what its class says of the scalars."""
    if name not in diagnostics:
        return "", ""
    found = diagnostics[name]
    first, *_ = (sys.modules[found.__module__].__doc__ or "").splitlines() or [""]
    return first.rstrip("."), " ".join((getattr(found, "__doc__", None) or "").split())


def _tables(diagnosis: Diagnosis) -> list[Table]:
    """All arrays: those of one number by layer beside each other, the others each by itself."""
    by_layer: dict[str, Sequence[Any]] = {}
    tables: list[Table] = []
    for name, result in diagnosis.results.items():
        for key, values in result.arrays.items():
            if not values:
                continue
            if isinstance(values[0], Mapping):
                columns = list(dict.fromkeys(column for row in values for column in row))
                rows = [[row.get(column) for column in columns] for row in values]
                tables.append(Table(f"{name}: {key}", columns, rows))
            elif isinstance(values[0], list | tuple):
                width = max(len(row) for row in values)
                heads = [str(column) for column in range(width)]
                table = [[i, *row, *[None] * (width - len(row))] for i, row in enumerate(values)]
                tables.append(Table(f"{name}: {key}", ["layer", *heads], table))
            else:
                by_layer[f"{name}: {key}"] = values
    layers = max((len(values) for values in by_layer.values()), default=0)
    rows = [[i, *(values[i] if i < len(values) else None for values in by_layer.values())] for i in range(layers)]
    return [Table("by layer", ["layer", *by_layer], rows), *tables] if by_layer else tables
