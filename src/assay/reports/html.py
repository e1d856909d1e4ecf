"""A comparison as one HTML file that opens anywhere: no network, no other file, every number in a table."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.comparison.result import ArmResult, Comparison
from assay.comparison.statistics import clopper_pearson
from assay.files import disk_errors, write_text
from assay.reports import numbers, plots
from assay.reports.sentences import describe, headline

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

REPORT_NAME = "report.html"
_FILTERS = (
    "fixed",
    "signed",
    "at_least",
    "probability",
    "count",
    "scientific",
    "duration",
    "memory",
    "change",
    "plain",
    "budget",
)


def write_report(comparison: Comparison, directory: str | Path) -> Path:
    """Write ``report.html`` into a directory, at once. Raises ``AssayError`` if the disk refuses."""
    path = Path(directory) / REPORT_NAME
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html(comparison))
    return path


def html(comparison: Comparison) -> str:
    """The page, with plotly.js inside. Figures are JSON in which plotly has escaped ``<``, ``>`` and ``/``."""
    from markupsafe import Markup

    figures = {}
    if any(arm.compared and arm.compared.pairs for arm in comparison.arms):
        figures["forest"] = plots.forest(comparison)
    if any(arm.mean is not None for arm in comparison.arms):
        figures["strip"] = plots.strip(comparison)
    if any(run.curve for arm in comparison.arms for run in arm.runs):
        figures["validation"] = plots.validation(comparison)
    if any(run.train for arm in comparison.arms for run in arm.runs):
        figures["training"] = plots.training(comparison)
    recorded = {f"diagnostic-{i}": name for i, name in enumerate(_recorded(comparison))}
    figures |= {figure: plots.recorded(comparison, name) for figure, name in recorded.items()}
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            comparison=comparison,
            baseline=comparison.baseline,
            others=comparison.arms[1:],
            headline=headline(comparison),
            sentences=[(arm, describe(arm, comparison).replace(" %", "\u00a0%")) for arm in comparison.arms[1:]],
            digits=numbers.decimals(comparison),
            level=f"{100 * (1 - comparison.alpha):g} %",
            costs=[_cost(arm) for arm in comparison.arms],
            tuning=_tuning(comparison),
            recorded=recorded,
            figures={name: Markup(figure.to_json()) for name, figure in figures.items()},
            heights={name: figure.layout.height for name, figure in figures.items()},
            plotly=plotly(),
        )
    )


def _recorded(comparison: Comparison) -> list[str]:
    """Names of what diagnostics recorded in any run."""
    return sorted({name for arm in comparison.arms for run in arm.runs for name in run.diagnostics})


def plotly() -> Markup:
    """plotly.js, for a script element."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs().replace("</script", "<\\/script"))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run of an arm takes, as means over its runs that finished (over all, if none did)."""

    parameters: float
    tokens: float
    flops: float
    seconds: float
    tokens_per_second: float
    peak_memory: float


def _cost(arm: ArmResult) -> Cost | None:
    runs = [run for run in arm.runs if run.status == "complete"] or arm.runs
    if not runs:
        return None
    fields = [field.name for field in dataclasses.fields(Cost)]
    return Cost(**{field: statistics.fmean(getattr(run, field) for run in runs) for field in fields})


def _tuning(comparison: Comparison) -> dict[str, Any] | None:
    """Scores by arm (rows) and candidate (columns), with what each arm chose."""
    tuned = [arm for arm in comparison.arms if arm.tuned]
    columns: dict[str, dict[str, Any]] = {}
    rows = []
    for arm in tuned:
        assert arm.tuned is not None
        scores = {json.dumps(tried.values): tried for tried in arm.tuned.candidates}
        columns |= {key: tried.values for key, tried in scores.items()}
        rows.append((arm, scores, json.dumps(arm.tuned.chosen)))
    if not rows:
        return None
    seeds = sorted({seed for arm in tuned if arm.tuned for seed in arm.tuned.seeds})
    return {"columns": columns, "rows": rows, "seeds": seeds}


def _rate(arm: ArmResult) -> str:
    """The exact interval of how often runs of this arm diverge."""
    if not arm.runs:
        return ""
    low, high = clopper_pearson(arm.diverged, len(arm.runs))
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def _swatch(index: int) -> dict[str, str]:
    """How the arm at ``index`` is drawn, for the page's legend."""
    colour, dash, _ = plots.style(index)
    return {"colour": colour, "dash": {"solid": "", "dash": "6 4", "dot": "2 3"}[dash]}


def _breakable(name: str) -> Markup:
    """An arm's name that may be broken after ``+``."""
    from markupsafe import Markup, escape

    return Markup("+<wbr>").join(escape(part) for part in name.split("+"))


def environment() -> Environment:
    """The templates of this package, and their filters."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("assay.reports", "."),
        autoescape=lambda name: name is None or name.endswith(".jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {name: getattr(numbers, name) for name in _FILTERS}
    found.filters |= {"rate": _rate, "swatch": _swatch, "breakable": _breakable}
    return found
