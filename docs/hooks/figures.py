"""The figure of an expectation: the region, every seed, the mean and its interval, as plain SVG."""

from __future__ import annotations

import html
import math

from assay.catalog.evidence import Measurement, Outcome
from assay.claims.judging import Quantity, Region

WIDTH, HEIGHT, LEFT, RIGHT = 640, 92, 16, 16
AXIS, DOTS, MEAN = 62, 22, 42


def outcome_figure(outcome: Outcome, measurement: Measurement) -> str:
    """An SVG element; empty if there is nothing finite to show."""
    if outcome.mean is None:
        return ""
    region = Region.parse(outcome.region)
    seeds = Quantity.parse(outcome.quantity, measurement.values).by_seed(measurement.values)
    edges = [edge for edge in (region.low, region.high) if math.isfinite(edge)]
    points = [outcome.mean, *seeds.values(), *edges, *(x for x in (outcome.low, outcome.high) if x is not None)]
    low, high = min(points), max(points)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    start, end = x(region.low), x(region.high)
    parts = [
        f'<rect class="region" x="{start}" y="8" width="{round(end - start, 1)}" height="{AXIS - 8}"/>',
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{AXIS}" y2="{AXIS}"/>',
    ]
    for tick in ticks(low, high):
        parts.append(f'<line class="axis" x1="{x(tick)}" x2="{x(tick)}" y1="{AXIS}" y2="{AXIS + 5}"/>')
        parts.append(f'<text x="{x(tick)}" y="{AXIS + 20}">{tick:.6g}</text>')
    for seed, value in seeds.items():
        title = f"<title>seed {seed}: {value:.4g}</title>"
        parts.append(f'<circle class="seed" cx="{x(value)}" cy="{DOTS}" r="4">{title}</circle>')
    if outcome.low is not None and outcome.high is not None:
        parts.append(f'<line class="interval" x1="{x(outcome.low)}" x2="{x(outcome.high)}" y1="{MEAN}" y2="{MEAN}"/>')
    middle = x(outcome.mean)
    diamond = f"M{middle - 7} {MEAN}L{middle} {MEAN - 7}L{middle + 7} {MEAN}L{middle} {MEAN + 7}Z"
    parts.append(f'<path class="mean" d="{diamond}"/>')
    label = html.escape(f"{outcome.quantity}: mean {outcome.mean:.4g}, expected {outcome.region}", quote=True)
    caption = html.escape(f"{outcome.quantity}; shaded: expected ({outcome.region})")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<figure class="outcome">{svg}<figcaption>{caption}</figcaption></figure>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high], three to seven of them, by steps of 1, 2 or 5 times a power of ten."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= max(factor for factor in (1, 2, 5) if (high - low) / (factor * step) >= 3)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]
