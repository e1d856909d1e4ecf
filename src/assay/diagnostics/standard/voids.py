"""Voids: layers that leave a token's residual norm as good as unchanged.

    Δ_l   = ‖h_{l+1}‖ − ‖h_l‖
    thr_l = α · ( max_{j<l} Δ_j − min_{j<l} Δ_j )          (0 for the first two layers)
    void  ⇔  Δ_l < thr_l

for each token on its own, α = 0.8; the first token, whose norm is of another size, is left out. Shemiranifar, 2025,
arXiv:2505.14467.
"""

from __future__ import annotations

from torch import Tensor

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import LayerStep
from assay.diagnostics.means import Means
from assay.diagnostics.subject import Subject

ALPHA = 0.8
USED = 0.1


@diagnostics.register("voids")
class Voids(Diagnostic):
    """``used_layers`` (share of layers that are no voids, mean over tokens)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.means = Means()
        self.most: Tensor | None = None
        self.least: Tensor | None = None

    def on_layer(self, step: LayerStep) -> None:
        change = (step.norm_after - step.norm_before)[:, 1:]
        if step.layer == 0 or self.most is None or self.least is None:
            self.most = self.least = change
            active = change >= 0
        else:
            active = change >= ALPHA * (self.most - self.least)
            self.most, self.least = self.most.maximum(change), self.least.minimum(change)
        self.means.add("active", step.layer, active.float().flatten())

    def result(self) -> Result:
        used = self.means.numbers("active")
        mean = sum(used) / len(used)
        found = []
        if mean < USED:
            found.append(
                Finding(
                    "voids",
                    "idle-depth",
                    f"for the average token {mean:.0%} of the layers change the residual norm noticeably",
                    mean,
                    USED,
                    "chosen here: the models of Shemiranifar, 2025, arXiv:2505.14467, use 30 % and more",
                    "most layers are voids: to skip them may cost little, and fewer layers may be enough",
                    tuple({"layer": i, "used": round(x, 4)} for i, x in enumerate(used) if x < USED),
                    USED / max(mean, 1e-6),
                )
            )
        return Result({"used_layers": mean}, {"used": used}, found)
