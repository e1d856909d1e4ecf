"""The size of the residual stream by layer.

    rms_l       mean over tokens of sqrt( mean over features of h_l² ),   h_l after layer l
    variance_l  mean over tokens of the variance over features
    growth      rms_L / rms_1
    peak        max over layers of ‖h_l[0]‖ / mean over the other tokens of ‖h_l‖

The first token is left out of the means. L branches of equal size and independent direction would make the stream
√L times larger; in a Pre-LN network it can grow much faster, up to exponentially (Sun et al., 2025, arXiv:2502.05795;
Kim et al., 2025, arXiv:2502.02732).
"""

from __future__ import annotations

import math

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import LayerStep
from assay.diagnostics.means import Means
from assay.diagnostics.subject import Subject

FACTOR = 4.0


@diagnostics.register("residual-norms")
class ResidualNorms(Diagnostic):
    """``growth``, ``rms`` (after the last layer), ``variance`` (after the last layer), ``peak``."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.means = Means()

    def on_layer(self, step: LayerStep) -> None:
        norms = step.norm_after
        self.means.add("rms", step.layer, norms[:, 1:].flatten() / self.subject.hidden_size**0.5)
        self.means.add("variance", step.layer, step.after[:, 1:].var(-1, unbiased=False).flatten())
        self.means.add("first", step.layer, norms[:, 0])
        self.means.add("others", step.layer, norms[:, 1:].flatten())

    def result(self) -> Result:
        rms, variance = self.means.numbers("rms"), self.means.numbers("variance")
        first, others = self.means.numbers("first"), self.means.numbers("others")
        peaks = [one / max(rest, 1e-12) for one, rest in zip(first, others, strict=True)]
        growth = rms[-1] / max(rms[0], 1e-12)
        limit = FACTOR * math.sqrt(len(rms))
        found = []
        if not growth < limit:
            found.append(
                Finding(
                    "residual-norms",
                    "residual-growth",
                    f"the residual stream is {growth:.3g} times larger after the last layer than after the first",
                    growth,
                    limit,
                    f"chosen here: {FACTOR:.0f} times the √L that {len(rms)} independent branches of equal size make",
                    "later layers hardly change the direction of the stream, and what they learn counts for little",
                    ({"layer": len(rms) - 1, "rms": rms[-1]},),
                    growth / limit if growth == growth else math.inf,
                )
            )
        return Result(
            {"growth": growth, "rms": rms[-1], "variance": variance[-1], "peak": max(peaks)},
            {"rms": rms, "variance": variance, "peak": peaks},
            found,
        )
