"""The figures of a report, as plotly figures without colours of page or text: the page's style sets those."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from assay.comparison.result import ArmResult, Comparison
from assay.reports.curves import AXES, Curve, aggregate, single
from assay.reports.numbers import decimals

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# After Okabe and Ito (2008): told apart with any colour vision, on white and on near-black.
BASELINE = "#7d8590"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c0629b", "#c98500", "#3c9fd6")
DASHES = ("solid", "dash", "dot")
SYMBOLS = ("circle", "square", "triangle-up")
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif'
_LABEL_WIDTH = 24


def style(index: int) -> tuple[str, str, str]:
    """Colour, dash and symbol of the arm at ``index``; the baseline is grey."""
    if index == 0:
        return BASELINE, DASHES[0], SYMBOLS[0]
    cycle, colour = divmod(index - 1, len(COLOURS))
    return COLOURS[colour], DASHES[cycle % len(DASHES)], SYMBOLS[cycle % len(SYMBOLS)]


def forest(comparison: Comparison) -> Figure:
    """Each arm's mean difference from the baseline with its interval, and each pair's own difference."""
    others = list(enumerate(comparison.arms))[1:]
    figure = blank(_label_rows([arm for _, arm in others], comparison))
    digits = decimals(comparison)
    baseline = _values(comparison.baseline)
    reached = [0.0]
    figure.add_vline(x=0, line={"width": 1.5, "color": BASELINE})
    for row, (index, arm) in enumerate(others):
        colour, _, symbol = style(index)
        values = _values(arm)
        pairs = [(seed, values[seed] - baseline[seed]) for seed in sorted(values.keys() & baseline.keys())]
        found = arm.compared
        if found is None or found.mean is None:
            figure.add_annotation(x=0, y=row, text="no pair finished", showarrow=False, xanchor="left", xshift=8)
            continue
        figure.add_scatter(
            x=[difference for _, difference in pairs],
            y=[row + 0.26] * len(pairs),
            mode="markers",
            marker={"color": colour, "size": 7, "opacity": 0.6, "symbol": symbol},
            customdata=[seed for seed, _ in pairs],
            hovertemplate=f"seed %{{customdata}}: %{{x:+.{digits}f}}<extra></extra>",
        )
        reached += [difference for _, difference in pairs]
        shown = found.verdict in ("better", "worse")
        interval = ""
        if found.low is not None and found.high is not None:
            reached += [found.low, found.high]
            interval = f"<br>interval {found.low:+.{digits}f} to {found.high:+.{digits}f}"
            figure.add_scatter(
                x=[found.low, found.high],
                y=[row, row],
                mode="lines",
                line={"color": colour, "width": 3},
                hoverinfo="skip",
            )
        figure.add_scatter(
            x=[found.mean],
            y=[row],
            mode="markers",
            marker={
                "color": colour if shown else "white",
                "size": 12,
                "symbol": "diamond",
                "line": {"color": colour, "width": 2.5},
            },
            hovertemplate=f"<b>{escape(arm.name)}</b><br>mean %{{x:+.{digits}f}}{interval}<extra></extra>",
        )
    figure.update_xaxes(title_text=f"difference in {escape(comparison.unit)}", range=_padded(reached, 0.1))
    figure.update_layout(height=figure.layout.height + 20, margin={"t": 28})
    better, worse = ("left", "right") if comparison.lower_is_better else ("right", "left")
    arrows = {"left": "← {}", "right": "{} →"}
    for side, word in ((better, "better"), (worse, "worse")):
        figure.add_annotation(
            x=0,
            y=1,
            yref="paper",
            yanchor="bottom",
            xanchor="right" if side == "left" else "left",
            xshift=-10 if side == "left" else 10,
            text=arrows[side].format(word),
            showarrow=False,
        )
    return figure


def strip(comparison: Comparison) -> Figure:
    """Each run's final value; the runs of one seed are joined."""
    figure = blank(_label_rows(comparison.arms, comparison))
    digits = decimals(comparison)
    rows = [_values(arm) for arm in comparison.arms]
    for seed in sorted({seed for values in rows for seed in values}):
        figure.add_scatter(
            x=[values.get(seed) for values in rows],
            y=list(range(len(rows))),
            mode="lines",
            line={"color": BASELINE, "width": 1},
            connectgaps=True,
            opacity=0.55,
            hoverinfo="skip",
        )
    for row, (arm, values) in enumerate(zip(comparison.arms, rows, strict=True)):
        colour, _, symbol = style(row)
        figure.add_scatter(
            x=list(values.values()),
            y=[row] * len(values),
            mode="markers",
            marker={"color": colour, "size": 9, "symbol": symbol},
            customdata=list(values),
            hovertemplate=f"<b>{escape(arm.name)}</b><br>seed %{{customdata}}: %{{x:.{digits}f}}<extra></extra>",
        )
    figure.update_xaxes(title_text=f"final validation {escape(comparison.unit)}")
    return figure


def validation(comparison: Comparison) -> Figure:
    """The validation metric over training: mean and range over the seeds, and runs that diverged."""
    return _curves(comparison, lambda run: run.curve, band=True)


def training(comparison: Comparison) -> Figure:
    """The training loss over training: mean over the seeds, and runs that diverged."""
    return _curves(comparison, lambda run: run.train, band=False)


def recorded(comparison: Comparison, name: str) -> Figure:
    """A number of a diagnostic over training, ``diagnostic.number``: mean and range over the seeds."""
    figure = _curves(comparison, lambda run: run.diagnostics.get(name, []), band=True)
    figure.update_yaxes(range=None)
    figure.update_layout(height=260)
    return figure


def _curves(comparison: Comparison, points: Any, *, band: bool) -> Figure:
    """Every trace carries its arm and its x values by axis in ``meta``, for the page's switches."""
    figure = blank()
    digits = decimals(comparison)
    curves = [aggregate(arm, points) for arm in comparison.arms]
    opacity = 0.16 if len(curves) <= 6 else 0.08
    for index, curve in enumerate(curves):
        if band and curve.low != curve.high:
            colour = style(index)[0]
            figure.add_scatter(
                x=curve.x["tokens"] + curve.x["tokens"][::-1],
                y=curve.low + curve.high[::-1],
                fill="toself",
                fillcolor=transparent(colour, opacity),
                mode="none",
                hoverinfo="skip",
                meta={"arm": index, "x": {axis: xs + xs[::-1] for axis, xs in curve.x.items()}},
            )
    for index, (arm, curve) in enumerate(zip(comparison.arms, curves, strict=True)):
        colour, dash, _ = style(index)
        name = escape(arm.name)
        _line(figure, index, curve, name, digits, line={"color": colour, "width": 2, "dash": dash})
        for run in arm.runs:
            ended = single(run, points)
            if run.status == "diverged" and ended.mean:
                label = f"{name}, seed {run.seed}, diverged"
                _line(figure, index, ended, label, digits, line={"color": colour, "width": 1, "dash": "dot"})
                last = Curve({axis: xs[-1:] for axis, xs in ended.x.items()}, ended.mean[-1:], [], [])
                marker = {"color": colour, "symbol": "x", "size": 9}
                _line(figure, index, last, label, digits, mode="markers", marker=marker)
    figure.update_xaxes(title_text=AXES["tokens"], rangemode="tozero")
    figure.update_yaxes(range=_late_range(curves), showgrid=True)
    figure.update_layout(height=400, meta={"axes": AXES})
    return figure


def _line(figure: Figure, index: int, curve: Curve, name: str, digits: int, **how: Any) -> None:
    if curve.mean:
        figure.add_scatter(
            **{"mode": "lines", **how},
            x=curve.x["tokens"],
            y=curve.mean,
            hovertemplate=f"<b>{name}</b><br>%{{y:.{digits}f}} at %{{x:.4s}}<extra></extra>",
            meta={"arm": index, "x": curve.x},
        )


def _late_range(curves: Sequence[Curve]) -> list[float] | None:
    """From the lowest value to the highest one after the first third of training."""
    late = [
        value
        for curve in curves
        for tokens, low, high in zip(curve.x["tokens"], curve.low, curve.high, strict=True)
        if tokens >= curve.x["tokens"][-1] / 3
        for value in (low, high)
    ]
    return _padded(late)


def _padded(values: Sequence[float], share: float = 0.04) -> list[float] | None:
    """The range of the values with a margin of this share; ``None`` leaves it to plotly."""
    if not values or min(values) == max(values):
        return None
    margin = share * (max(values) - min(values))
    return [min(values) - margin, max(values) + margin]


def blank(labels: Sequence[str] | None = None) -> Figure:
    """An empty figure; with ``labels`` it has one labelled row each, the first on top."""
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(
        template="none",
        showlegend=False,
        autosize=True,
        margin={"l": 56, "r": 16, "t": 8, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 13, "family": FONT},
        hoverlabel={"align": "left"},
        dragmode="zoom",
    )
    axis = {
        "showline": False,
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 12, "font": {"size": 13}},
    }
    figure.update_xaxes(**axis, showgrid=True, nticks=7, tickangle=0)
    figure.update_yaxes(**axis, showgrid=False)
    if labels is not None:
        lines = max(label.count("<br>") + 1 for label in labels)
        figure.update_yaxes(
            tickvals=list(range(len(labels))),
            ticktext=list(labels),
            range=[len(labels) - 0.5, -0.5],
            fixedrange=True,
            ticklabelstandoff=12,
        )
        figure.update_layout(height=64 + len(labels) * max(44, 18 * lines + 10), margin={"l": 8})
    return figure


def _label_rows(arms: Sequence[ArmResult], comparison: Comparison) -> list[str]:
    """Arm names broken at ``+``, and under them how many runs diverged."""
    labels = []
    for arm in arms:
        lines = [""]
        for part in re.split(r"(?<=\+)", arm.name):
            if lines[-1] and len(lines[-1]) + len(part) > _LABEL_WIDTH:
                lines.append("")
            lines[-1] += part
        label = "<br>".join(escape(line) for line in lines)
        if arm.diverged:
            label += f"<br><i>{arm.diverged} of {len(arm.runs)} diverged</i>"
        labels.append(label)
    return labels


def _values(arm: ArmResult) -> dict[int, float]:
    return {run.seed: run.value for run in arm.runs if run.value is not None}


def transparent(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def escape(text: str) -> str:
    """Text as text where plotly would read tags and variables."""
    return html.escape(text, quote=False).replace("%", "&#37;")
