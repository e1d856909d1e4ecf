"""Constant after a linear warm-up: f(p) = min(1, p / warmup)."""

from __future__ import annotations

from assay.optim.registries import schedules
from assay.optim.schedule import check_share, warm_up


@schedules.register("constant")
class Constant:
    def __init__(self, *, warmup: float = 0.05) -> None:
        self.warmup = check_share("constant", "warmup", warmup)

    def __call__(self, progress: float) -> float:
        return warm_up(progress, self.warmup)
