"""Spectra of the weight matrices.

    tail exponent   α of the power law that the largest eigenvalues of WᵀW follow
    outliers        singular values above what independent entries of equal variance would give
    low-rankness    the share of singular values that make up 90 % of Σ s²

α between 2 and 6 is what well trained layers have; above 6 there is little structure, under 2 too much of it in a few
directions. Martin, Mahoney, 2018, arXiv:1810.01075; Martin, Peng, Mahoney, 2020, arXiv:2002.06716.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.windows import Windows
from assay.errors import UserError
from assay.measures.spectra import low_rankness, outliers, power_law, stable_rank

HEAVY, LIGHT = 2.0, 6.0
SHARE = 0.25


@diagnostics.register("weight-spectra")
class WeightSpectra(Diagnostic):
    """``tail_exponent`` and ``low_rankness`` (medians over matrices), ``light_tails`` and ``heavy_tails`` (shares
    with an exponent above 6 and under 2), ``outliers`` (mean number)."""

    cost = "weights"
    rows: tuple[dict[str, Any], ...] = ()

    @torch.no_grad()
    def work(self, windows: Windows) -> None:
        self.rows = tuple(self._row(name, matrix) for name, matrix in self.subject.matrices())

    def _row(self, name: str, matrix: torch.Tensor) -> dict[str, Any]:
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        wide = wide.double()
        eigenvalues = torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).flip(0)
        singular = eigenvalues.sqrt()
        try:
            alpha = power_law(eigenvalues[eigenvalues > 1e-14 * eigenvalues[0]]).alpha
        except UserError:
            alpha = float("nan")
        return {
            "matrix": name,
            "tail_exponent": alpha,
            "outliers": outliers(singular, *matrix.shape).count,
            "low_rankness": low_rankness(singular).item(),
            "stable_rank": stable_rank(singular).item(),
        }

    def result(self) -> Result | None:
        fitted = [row for row in self.rows if row["tail_exponent"] == row["tail_exponent"]]
        if not fitted:
            return None
        light = sorted((r for r in fitted if r["tail_exponent"] > LIGHT), key=lambda r: -r["tail_exponent"])
        heavy = sorted((r for r in fitted if r["tail_exponent"] < HEAVY), key=lambda r: r["tail_exponent"])
        source = "2 to 6 for well trained layers: Martin, Peng, Mahoney, 2020, arXiv:2002.06716"
        found = []
        if len(light) >= SHARE * len(fitted):
            found.append(
                Finding(
                    "weight-spectra",
                    "slow-convergence",
                    f"{len(light)} of {len(fitted)} matrices have a tail exponent above {LIGHT:.0f}",
                    light[0]["tail_exponent"],
                    LIGHT,
                    source,
                    "their spectra are close to those of random matrices: these layers have learned little so far",
                    tuple(_place(row) for row in light),
                    light[0]["tail_exponent"] / LIGHT,
                )
            )
        if len(heavy) >= SHARE * len(fitted):
            found.append(
                Finding(
                    "weight-spectra",
                    "overfitting",
                    f"{len(heavy)} of {len(fitted)} matrices have a tail exponent under {HEAVY:.0f}",
                    heavy[0]["tail_exponent"],
                    HEAVY,
                    source,
                    "a few directions hold most of these matrices, as after training too long",
                    tuple(_place(row) for row in heavy),
                    HEAVY / max(heavy[0]["tail_exponent"], 1.0),
                )
            )
        scalars = {
            "tail_exponent": statistics.median(row["tail_exponent"] for row in fitted),
            "low_rankness": statistics.median(row["low_rankness"] for row in self.rows),
            "outliers": statistics.mean(row["outliers"] for row in self.rows),
            "light_tails": len(light) / len(fitted),
            "heavy_tails": len(heavy) / len(fitted),
        }
        return Result(scalars, {"matrices": list(self.rows)}, found)


def _place(row: dict[str, Any]) -> dict[str, Any]:
    return {"matrix": row["matrix"], "tail_exponent": round(row["tail_exponent"], 3)}
