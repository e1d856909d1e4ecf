"""The loss as a function of a network's sizes, fitted to runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from assay.errors import UserError

FEWEST = 6
"""Runs that a law needs."""

RIDGES = tuple(10.0**power for power in range(-12, 3))

Vector = Float[np.ndarray, " runs"]
Matrix = Float[np.ndarray, "runs terms"]


@dataclasses.dataclass(frozen=True)
class LossLaw:
    """``features`` are the sizes that differed between the runs, in the order of ``center`` and ``scale``.

    ``r2`` and ``rank`` (Spearman's) compare each run's loss with what a law fitted to the others says of it.
    """

    features: tuple[str, ...]
    center: Vector
    scale: Vector
    intercept: float
    coefficients: Vector
    means: Vector
    ridge: float
    r2: float
    rank: float

    @classmethod
    def fit(cls, features: Mapping[str, Sequence[float]], losses: Sequence[float]) -> LossLaw:
        """The ridge is the one whose laws fitted to all runs but one are best at that one.

        Raises ``UserError`` for fewer than 6 runs, a size that is not above 0, or sizes that are all the same.
        """
        y = np.asarray(losses, float)
        varied = {name: np.asarray(values, float) for name, values in features.items() if len(set(values)) > 1}
        if len(y) < FEWEST or not varied:
            raise UserError(f"a law of the loss needs {FEWEST} runs of different sizes; there are {len(y)}")
        columns = np.stack(list(varied.values()), 1)
        if not (np.isfinite(y).all() and np.isfinite(columns).all() and (columns > 0).all()):
            raise UserError("losses are finite, and sizes above 0")
        logs = np.log(columns)
        center, scale = logs.mean(0), logs.std(0)
        terms = quadratic((logs - center) / scale)
        held_out = {ridge: _held_out(terms, y, ridge) for ridge in RIDGES}
        ridge = min(RIDGES, key=lambda one: float(np.square(held_out[one] - y).sum()))
        intercept, coefficients, means = _ridge(terms, y, ridge)
        r2 = 1 - np.square(held_out[ridge] - y).sum() / np.square(y - y.mean()).sum()
        rank = float(spearmanr(held_out[ridge], y).statistic)
        return cls(tuple(varied), center, scale, intercept, coefficients, means, ridge, float(r2), rank)

    def predict(self, features: Mapping[str, Sequence[float]]) -> Vector:
        """Losses of networks of these sizes."""
        logs = np.log(np.stack([np.asarray(features[name], float) for name in self.features], 1))
        terms = quadratic((logs - self.center) / self.scale)
        return self.intercept + (terms - self.means) @ self.coefficients


def quadratic(x: Float[np.ndarray, "runs features"]) -> Matrix:
    """All xᵢ, then all products xᵢ xⱼ with i ≤ j."""
    first, second = np.triu_indices(x.shape[1])
    return np.concatenate([x, x[:, first] * x[:, second]], 1)


def _ridge(terms: Matrix, y: Vector, ridge: float) -> tuple[float, Vector, Vector]:
    """Intercept, coefficients, means of the terms: least squares with a penalty on all but the intercept."""
    means = terms.mean(0)
    penalty = np.sqrt(ridge) * np.eye(terms.shape[1])
    left = np.concatenate([terms - means, penalty])
    right = np.concatenate([y - y.mean(), np.zeros(terms.shape[1])])
    return float(y.mean()), np.linalg.lstsq(left, right, rcond=None)[0], means


def _held_out(terms: Matrix, y: Vector, ridge: float) -> Vector:
    """For each run, what a fit to all others says."""
    found = []
    for index in range(len(y)):
        others = np.arange(len(y)) != index
        intercept, coefficients, means = _ridge(terms[others], y[others], ridge)
        found.append(intercept + (terms[index] - means) @ coefficients)
    return np.asarray(found)
