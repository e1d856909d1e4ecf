"""Massive activations: single values of the residual stream, thousands of times larger than the others.

    massive    |h_l[t, j]| > 100  and  |h_l[t, j]| ≥ 1000 · median |h_l|

Sun, Chen, Kolter, Liu, 2024, arXiv:2402.17762.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import LayerStep
from assay.diagnostics.means import Means
from assay.diagnostics.subject import Subject

LARGE, RATIO = 100.0, 1000.0
SAMPLE = 16384
"""Values of a batch whose median is taken."""


@diagnostics.register("massive-activations")
class MassiveActivations(Diagnostic):
    """``largest`` (value), ``ratio`` (to its layer's median), ``massive_dimensions`` (their number)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.means = Means()
        self.largest: dict[int, Tensor] = {}
        self.tokens: dict[int, Tensor] = {}

    def on_layer(self, step: LayerStep) -> None:
        sizes, layer = step.size_after, step.layer
        every = max(1, sizes.numel() // SAMPLE)
        self.means.add("median", layer, sizes.flatten()[::every].median()[None])
        top, token = sizes.amax(0).max(0)  # over texts, then over tokens: by feature
        top, token = top.cpu(), token.cpu()
        if layer in self.largest:
            larger = top > self.largest[layer]
            token = torch.where(larger, token, self.tokens[layer])
            top = torch.where(larger, top, self.largest[layer])
        self.largest[layer], self.tokens[layer] = top, token

    def result(self) -> Result:
        places, ratios, tops = [], [], []
        for layer in sorted(self.largest):
            median = max(self.means.of("median", layer).item(), 1e-12)
            top = self.largest[layer]
            tops.append(top.max().item())
            ratios.append(tops[-1] / median)
            for feature in torch.where((top > LARGE) & (top >= RATIO * median))[0].tolist():
                token, value = int(self.tokens[layer][feature]), top[feature].item()
                place = {"layer": layer, "dimension": feature, "token": token, "value": round(value, 1)}
                places.append((value / median / RATIO, place))
        places.sort(key=lambda place: -place[0])
        dimensions = sorted({place["dimension"] for _, place in places})
        found = []
        if places:
            layers = sorted({place["layer"] for _, place in places})
            found.append(
                Finding(
                    "massive-activations",
                    "massive-activation",
                    f"in {len(layers)} layers, from {layers[0]} to {layers[-1]}, values of feature "
                    f"{', '.join(map(str, dimensions[:5]))}{' …' if len(dimensions) > 5 else ''} reach "
                    f"{max(tops):.4g}, {max(ratios):.3g} times the median of their layer",
                    max(ratios),
                    RATIO,
                    "more than 100, and 1000 times the median: Sun et al., 2024, arXiv:2402.17762",
                    "these values act as a constant that attention sinks feed on; they stretch the range of 8-bit "
                    "activations, and removing them breaks the model",
                    tuple(place for _, place in places),
                    max(ratios) / RATIO if max(tops) < float("inf") else float("inf"),
                )
            )
        return Result(
            {"largest": max(tops), "ratio": max(ratios), "massive_dimensions": len(dimensions)},
            {"largest": tops, "ratio": ratios},
            found,
        )
