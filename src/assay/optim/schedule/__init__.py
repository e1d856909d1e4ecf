"""Learning-rate schedules: factors of the peak rate as functions of the share of the budget that is spent."""

from __future__ import annotations

from assay.errors import UserError


def check_share(schedule: str, name: str, value: float) -> float:
    """``value`` if it lies in [0, 1]. Raises ``UserError`` otherwise."""
    if not 0 <= value <= 1:
        raise UserError(f"schedule {schedule!r}: {name}={value} is outside [0, 1]")
    return value


def warm_up(progress: float, warmup: float) -> float:
    """Linear from 0 to 1 over the first ``warmup`` of the budget."""
    return min(1.0, progress / warmup) if warmup > 0 else 1.0
