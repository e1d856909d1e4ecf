"""Kinds of figures of a diagnosis: lines and bars by layer, heat maps, exponents of weight matrices.

Each draws what models have of it: one figure of all, under None, or one of each that has the numbers, under its
index, all on one scale.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assay.diagnostics.diagnosis import Diagnosis
from assay.reports.plots import BASELINE, COLOURS, DASHES, blank, escape, style, transparent

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HEIGHT = 290
_STEPS = (1, 2, 5, 10, 20, 50, 100, 500)
_SCALE = [[0.0, transparent(COLOURS[0], 0.05)], [1.0, transparent(COLOURS[0], 1)]]


@dataclasses.dataclass(frozen=True)
class Lines:
    """Arrays of one number by layer: ``series`` are their names and labels, ``limits`` thresholds."""

    group: str
    title: str
    note: str
    diagnostic: str
    series: Mapping[str, str]
    unit: str
    log: bool = False
    bars: bool = False
    limits: tuple[float, ...] = ()
    range: tuple[float, float] | None = None

    def draw(self, diagnoses: Sequence[Diagnosis], names: Sequence[str]) -> dict[int | None, Figure]:
        figure = _framed()
        arrays = [_arrays(diagnosis, self.diagnostic) for diagnosis in diagnoses]
        found = [
            (model, series, name, rounded(arrays[model][name]))
            for series, name in enumerate(self.series)
            for model in range(len(arrays))
            if arrays[model].get(name)
        ]
        alone = len(diagnoses) == 1
        for model, series, name, values in found:
            label = self.series[name]
            colour, dash = COLOURS[series if alone else model], DASHES[0 if alone else series % len(DASHES)]
            whose = f"<b>{label}</b>" if alone else f"<b>{label}</b>, {escape(names[model])}"
            shown = {
                "x": list(range(len(values))),
                "y": values,
                "name": label,
                "showlegend": alone,
                "hovertemplate": f"{whose}<br>layer %{{x}}: %{{y:.4g}}<extra></extra>",
            }
            if self.bars:
                figure.add_bar(**shown, marker={"color": colour})
            else:
                line = {"color": colour, "width": 2, "dash": dash}
                figure.add_scatter(**shown, mode="lines" if len(values) > 1 else "markers", line=line)
        if not alone and len(self.series) > 1:
            for series, label in enumerate(self.series.values()):
                line = {"color": BASELINE, "width": 2, "dash": DASHES[series % len(DASHES)]}
                figure.add_scatter(x=[None], y=[None], name=label, mode="lines", line=line)
        longest = max((len(values) for *_, values in found), default=1)
        _count(figure.update_xaxes, longest)
        for limit in self.limits:
            figure.add_scatter(
                x=[-0.5, longest - 0.5],
                y=[limit, limit],
                name=f"threshold {limit:g}",
                mode="lines",
                line={"color": BASELINE, "width": 1, "dash": "dot"},
                hoverinfo="skip",
            )
        figure.update_layout(showlegend=len(figure.data) > 1, bargap=0.25)
        figure.update_xaxes(title_text=_axis(diagnoses, [values for *_, values in found]))
        figure.update_yaxes(title_text=self.unit, range=self.range)
        if self.log:
            ticks = _ticks([v for *_, values in found for v in values] + [*self.limits])
            figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
        return {None: figure} if found else {}


@dataclasses.dataclass(frozen=True)
class Heads:
    """An array of layer by head as a heat map; ``high`` is where the colours end, if not at the largest value."""

    group: str
    title: str
    note: str
    diagnostic: str
    name: str
    high: float | None = None
    relative: bool = False

    def draw(self, diagnoses: Sequence[Diagnosis], names: Sequence[str]) -> dict[int | None, Figure]:
        tables = [_arrays(diagnosis, self.diagnostic).get(self.name) for diagnosis in diagnoses]
        if self.relative:
            tables = [table and [_by_median(row) for row in table] for table in tables]
        high = self.high or _top([value for table in tables if table for row in table for value in row])
        hover = "layer %{x}, head %{y}: %{z:.4g}"
        return {
            model: _heat(_columns(table), high, "head", _axis(diagnoses, [table]), hover)
            for model, table in enumerate(tables)
            if table
        }


@dataclasses.dataclass(frozen=True)
class Influence:
    """What skipping a layer (rows) does to the changes of the later ones (columns)."""

    group: str
    title: str
    note: str

    def draw(self, diagnoses: Sequence[Diagnosis], names: Sequence[str]) -> dict[int | None, Figure]:
        tables = [_arrays(diagnosis, "layer-skipping").get("influence") for diagnosis in diagnoses]
        later = {
            model: [[x if column > row else None for column, x in enumerate(line)] for row, line in enumerate(table)]
            for model, table in enumerate(tables)
            if table
        }
        high = _top([value for table in later.values() for line in table for value in line])
        hover = "skipping layer %{y} changes what layer %{x} adds by %{z:.4g}"
        figures: dict[int | None, Figure] = {}
        for model, table in later.items():
            figures[model] = _heat(rounded(table), high, "layer skipped", "later layer", hover)
            figures[model].update_yaxes(range=[len(table) - 0.5, -0.5])
            figures[model].update_layout(height=380)
        return figures


@dataclasses.dataclass(frozen=True)
class Exponents:
    """Tail exponents of the weight matrices by layer and kind, and the band of well trained layers."""

    group: str
    title: str
    note: str

    def draw(self, diagnoses: Sequence[Diagnosis], names: Sequence[str]) -> dict[int | None, Figure]:
        tables = [_arrays(diagnosis, "weight-spectra").get("matrices") for diagnosis in diagnoses]
        rows = {model: list(_by_kind(table)) for model, table in enumerate(tables) if table}
        values = [value for table in rows.values() for *_, value in table]
        figures: dict[int | None, Figure] = {}
        for model, table in rows.items():
            if not table:
                continue
            figure = _framed()
            kinds = list(dict.fromkeys(kind for kind, *_ in table))
            short = {kind: kind.rsplit(".", 1)[-1] for kind in kinds}
            labels = short if len(set(short.values())) == len(kinds) else {kind: kind for kind in kinds}
            figure.add_hrect(y0=2, y1=6, fillcolor=transparent(COLOURS[2], 0.12), line_width=0, layer="below")
            for index, kind in enumerate(kinds, 1):
                colour, _, symbol = style(index)
                label = escape(labels[kind])
                figure.add_scatter(
                    x=[layer for one, layer, _ in table if one == kind],
                    y=[value for one, _, value in table if one == kind],
                    name=label,
                    mode="markers",
                    marker={"color": colour, "symbol": symbol, "size": 7},
                    hovertemplate=f"<b>{label}</b><br>layer %{{x}}: %{{y:.4g}}<extra></extra>",
                )
            figure.update_layout(showlegend=True, height=380)
            figure.update_xaxes(title_text="layer")
            _count(figure.update_xaxes, 1 + max(layer for _, layer, _ in table))
            figure.update_yaxes(title_text="tail exponent", range=[0, 1.05 * max([*values, 6.5])])
            figures[model] = figure
        return figures


def rounded(value: Any) -> Any:
    """Numbers to 5 significant digits, those that are not finite as None, in lists of lists."""
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if _is_finite(value) else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _arrays(diagnosis: Diagnosis, name: str) -> Mapping[str, Sequence[Any]]:
    result = diagnosis.results.get(name)
    return {} if result is None else result.arrays


def _framed() -> Figure:
    figure = blank()
    figure.update_layout(
        height=HEIGHT,
        dragmode=False,
        margin={"l": 56, "r": 8, "t": 34, "b": 44},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
    )
    figure.update_xaxes(fixedrange=True, showgrid=False, rangemode="normal")
    figure.update_yaxes(fixedrange=True, showgrid=True, nticks=6)
    return figure


def _heat(table: list[list[float | None]], high: float, rows: str, columns: str, hover: str) -> Figure:
    figure = _framed()
    figure.add_heatmap(
        z=table,
        zmin=0,
        zmax=high,
        colorscale=_SCALE,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate=f"{hover}<extra></extra>",
        colorbar={"thickness": 10, "outlinewidth": 0, "ticks": "", "nticks": 5, "xpad": 6, "ypad": 0},
    )
    figure.update_layout(height=90 + min(420, max(170, 20 * len(table))), margin={"t": 8, "r": 48})
    figure.update_xaxes(title_text=columns)
    figure.update_yaxes(title_text=rows, showgrid=False)
    _count(figure.update_xaxes, len(table[0]))
    _count(figure.update_yaxes, len(table))
    return figure


def _columns(table: Sequence[Sequence[Any]]) -> list[list[float | None]]:
    """Layers become columns; a layer with fewer heads leaves cells empty."""
    heads = max(len(row) for row in table)
    return [rounded([row[head] if head < len(row) else None for row in table]) for head in range(heads)]


def _by_median(row: Sequence[Any]) -> list[float | None]:
    values = sorted(value for value in row if _is_finite(value))
    median = values[(len(values) - 1) // 2] if values else 0.0
    return [value / median if median and _is_finite(value) else None for value in row]


def _top(values: Sequence[Any]) -> float:
    """The largest value; where it stands far out, that which 98 % of the values stay under."""
    ordered = sorted(value for value in values if _is_finite(value))
    if not ordered or ordered[-1] <= 0:
        return 1.0
    most = ordered[int(0.98 * (len(ordered) - 1))]
    return float(f"{most if ordered[-1] > 3 * most > 0 else ordered[-1]:.3g}")


def _axis(diagnoses: Sequence[Diagnosis], arrays: Sequence[Any]) -> str:
    """Where only some layers have what was measured, they are counted by themselves."""
    layers = {diagnosis.about.get("layers") for diagnosis in diagnoses}
    return "layer" if {len(array) for array in arrays} <= layers else "layers that have it, in order"


def _count(update: Callable[..., Any], count: int) -> None:
    """An axis of layers or heads: whole numbers, at most eight of them labelled."""
    update(range=[-0.5, count - 0.5], tick0=0, dtick=next(step for step in _STEPS if count <= 8 * step))


def _ticks(values: Sequence[float | None]) -> list[float]:
    """1, 2 and 5 times powers of ten around the values; where these span much, only some powers of ten."""
    found = [value for value in values if value is not None and value > 0] or [1.0]
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    if max(found) / min(found) >= 100:
        return [10.0**power for power in range(low, high + 1, 1 + (high - low) // 6)]
    return [factor * 10.0**power for power in range(low, high + 1) for factor in (1, 2, 5)]


def _by_kind(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int, float]]:
    """``model.layers.3.mlp.up_proj.weight`` as ``("mlp.up_proj", 3, exponent)``."""
    for row in rows:
        split = re.search(r"(?:^|\.)(\d+)\.(.+?)(?:\.weight)?$", row["matrix"])
        if split and _is_finite(row["tail_exponent"]):
            yield re.sub(r"\.\d+(?=\.)", "", split[2]), int(split[1]), rounded(row["tail_exponent"])
