"""Residual sinks: features of the residual stream that are large on almost every token.

    s_j = mean over tokens of |h_j| / rms(h)

They set the scale by which the norm divides all other features. Qiu et al., 2026, arXiv:2601.22966; that features six
times as large as the usual are what 8-bit products cannot hold: Dettmers et al., 2022, arXiv:2208.07339.
"""

from __future__ import annotations

import torch

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import EPSILON, LayerStep
from assay.diagnostics.means import Means
from assay.diagnostics.subject import Subject

OUTLIER = 6.0


@diagnostics.register("residual-sinks")
class ResidualSinks(Diagnostic):
    """``strongest`` (the largest s_j of a layer), ``sink_dimensions`` (features with s_j ≥ 6 in some layer)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.means = Means()

    def on_layer(self, step: LayerStep) -> None:
        rms = (step.norm_after[:, 1:] / self.subject.hidden_size**0.5).clamp(min=EPSILON)
        scores = torch.einsum("bth,bt->bh", step.size_after[:, 1:], 1 / rms) / rms.shape[1]
        self.means.add("score", step.layer, scores)

    def result(self) -> Result:
        scores = self.means.by_layer("score")
        strongest = [score.max().item() for score in scores]
        where = [
            {"layer": layer, "dimension": feature, "score": round(score[feature].item(), 2)}
            for layer, score in enumerate(scores)
            for feature in torch.where(score >= OUTLIER)[0].tolist()
        ]
        where.sort(key=lambda place: -place["score"])
        dimensions = {place["dimension"] for place in where}
        found = []
        if where:
            named = ", ".join(map(str, sorted(dimensions)[:5]))
            found.append(
                Finding(
                    "residual-sinks",
                    "activation-outliers",
                    f"features {named}{' …' if len(dimensions) > 5 else ''} of the residual stream are on average up "
                    f"to {max(strongest):.3g} times as large as the stream's rms, on all tokens",
                    max(strongest),
                    OUTLIER,
                    "the size from which Dettmers et al., 2022, arXiv:2208.07339, keep a feature out of 8 bits",
                    "the norm divides by them, so they scale all others down; rounding to few bits loses the rest",
                    tuple(where),
                    max(strongest) / OUTLIER,
                )
            )
        return Result(
            {"strongest": max(strongest), "sink_dimensions": len(dimensions)}, {"strongest": strongest}, found
        )
