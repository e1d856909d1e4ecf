"""Warmup-stable-decay: constant until the last ``decay`` of the budget, then down to ``final``.

    f(p) = min(1, p / warmup)                            p < 1 − decay
    f(p) = shape from 1 to ``final``, at (p − (1 − decay)) / decay     otherwise

Hu et al., 2024 (MiniCPM), arXiv:2404.06395; linear decay: Hägele et al., 2024, arXiv:2405.18392.
"""

from __future__ import annotations

from assay.errors import UserError
from assay.optim.registries import schedules
from assay.optim.schedule import check_share, warm_up
from assay.optim.schedule.shapes import Shape, check_end, decayed


@schedules.register("warmup-stable-decay")
class WarmupStableDecay:
    """Raises ``UserError`` if warm-up and decay overlap, or the shape never reaches ``final``."""

    def __init__(
        self, *, warmup: float = 0.05, decay: float = 0.2, final: float = 0.0, shape: Shape = "linear"
    ) -> None:
        self.warmup = check_share("warmup-stable-decay", "warmup", warmup)
        self.decay = check_share("warmup-stable-decay", "decay", decay)
        self.final = check_share("warmup-stable-decay", "final", final)
        check_end("warmup-stable-decay", shape, "final", final)
        self.shape = shape
        if warmup + decay > 1:
            raise UserError(
                f"schedule 'warmup-stable-decay': warmup={warmup} and decay={decay} are more than a whole run"
            )

    def __call__(self, progress: float) -> float:
        left = 1 - progress
        if left >= self.decay or self.decay == 0:
            return warm_up(progress, self.warmup)
        return decayed(self.shape, 1 - max(left, 0.0) / self.decay, 1.0, self.final)
