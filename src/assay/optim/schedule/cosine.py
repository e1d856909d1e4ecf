"""Cosine: after the warm-up, half a cosine from 1 down to ``final``.

    f(p) = final + (1 − final) · ½(1 + cos(π (p − warmup) / (1 − warmup)))

Loshchilov, Hutter, 2016, arXiv:1608.03983, without restarts.
"""

from __future__ import annotations

from assay.optim.registries import schedules
from assay.optim.schedule import check_share, warm_up
from assay.optim.schedule.shapes import decayed


@schedules.register("cosine")
class Cosine:
    def __init__(self, *, warmup: float = 0.05, final: float = 0.1) -> None:
        self.warmup = check_share("cosine", "warmup", warmup)
        self.final = check_share("cosine", "final", final)

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return warm_up(progress, self.warmup)
        share = (progress - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 1.0
        return decayed("cosine", min(share, 1.0), 1.0, self.final)
