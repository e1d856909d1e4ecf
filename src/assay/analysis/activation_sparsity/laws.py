"""How the activation ratio A moves with training data and with the network's shape.

    ReLU, falling:   A(D) = exp(b − c D^α) + A₀
    SiLU, rising:    A(D) = A₀ − c D^−α
    width and depth: A(r) = slope · min(r, knee) + start,  r = hidden size / layers

D in 10⁹ training tokens; c, α and A₀, the limit ratio, are positive. Fitted by least squares, by
Levenberg–Marquardt from several starts. Luo et al., 2024, arXiv:2411.02335.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import least_squares

from assay.errors import UserError

Kind = Literal["relu", "silu"]


@dataclass(frozen=True)
class DataLaw:
    """``limit`` is A₀; ``b`` is 0 for SiLU; ``error`` the root mean square of what the fit leaves."""

    kind: Kind
    c: float
    alpha: float
    b: float
    limit: float
    error: float = 0.0

    def __call__(self, billions: float) -> float:
        """The activation ratio after that many 10⁹ tokens."""
        if self.kind == "relu":
            return math.exp(self.b - self.c * billions**self.alpha) + self.limit
        return self.limit - self.c * billions**-self.alpha


def fit_data(kind: Kind, billions: Sequence[float], ratios: Sequence[float]) -> DataLaw:
    """The law of that ``kind`` for the activation ratios of checkpoints; leave the warm-up's out.

    Raises ``UserError`` if there are not more checkpoints than the law has numbers (4 for ReLU, 3 for SiLU), or
    tokens or ratios are not positive.
    """
    tokens, found = _points(billions, ratios, 5 if kind == "relu" else 4, "a law of training data")
    newest = tokens.max()

    def law(raw: np.ndarray) -> np.ndarray:
        """c, α and A₀ are positive as exponentials; D is in units of the newest one, so that c is about 1."""
        size, alpha, limit = np.exp(np.clip(raw[:3], -50, 50))
        scaled = (tokens / newest) ** alpha
        with np.errstate(over="ignore"):
            return np.exp(raw[3] - size * scaled) + limit if kind == "relu" else limit - size / scaled

    fits = [
        least_squares(lambda raw: np.nan_to_num(law(raw), posinf=1e6) - found, start, method="lm", max_nfev=5000)
        for start in _starts(kind, found)
    ]
    best = min(fits, key=lambda fit: fit.cost)
    size, alpha, limit = np.exp(np.clip(best.x[:3], -50, 50))
    c = size / newest**alpha if kind == "relu" else size * newest**alpha
    error = math.sqrt(2 * best.cost / len(found))
    return DataLaw(kind, float(c), float(alpha), float(best.x[3]) if kind == "relu" else 0.0, float(limit), error)


def _starts(kind: Kind, ratios: np.ndarray) -> list[np.ndarray]:
    spread = max(float(np.ptp(ratios)), 1e-6)
    if kind == "silu":
        return [np.log([spread / 4, alpha, ratios.max()]) for alpha in (0.3, 1.0, 2.0)]
    limit = max(float(ratios.min()) * 0.9, 1e-6)
    return [
        np.array([*np.log([size, alpha, limit]), math.log(spread) + size / 4])
        for size, alpha in itertools.product((0.5, 3.0), (0.1, 0.5, 1.5))
    ]


@dataclass(frozen=True)
class WidthDepthLaw:
    """Linear in hidden size / layers up to ``knee``, and flat from there."""

    slope: float
    start: float
    knee: float
    error: float = 0.0

    def __call__(self, ratio: float) -> float:
        return self.slope * min(ratio, self.knee) + self.start


def fit_width_depth(shapes: Sequence[float], ratios: Sequence[float]) -> WidthDepthLaw:
    """The law for networks of one size and several ratios of hidden size to layers, ``shapes``.

    The knee is sought on 1001 places from the second smallest shape to the largest. Raises ``UserError`` for fewer
    than four networks, or numbers that are not positive.
    """
    places, found = _points(shapes, ratios, 4, "a law of width and depth")
    fits = []
    for knee in np.linspace(np.unique(places)[1], places.max(), 1001):
        table = np.stack([np.minimum(places, knee), np.ones_like(places)], axis=1)
        solution = np.linalg.lstsq(table, found, rcond=None)[0]
        error = float(np.sqrt(np.mean((table @ solution - found) ** 2)))
        fits.append(WidthDepthLaw(float(solution[0]), float(solution[1]), float(knee), error))
    return min(fits, key=lambda fit: fit.error)


def _points(places: Sequence[float], ratios: Sequence[float], least: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    if len(places) != len(ratios):
        raise UserError(f"{len(places)} places and {len(ratios)} activation ratios; there must be one for each")
    if len(set(places)) < least:
        raise UserError(f"{len(set(places))} different points; {what} needs at least {least}")
    both = np.array([places, ratios], dtype=float)
    if not (np.isfinite(both).all() and (both > 0).all()):
        raise UserError(f"{what} is fitted to positive numbers; one given is not")
    return both[0], both[1]
