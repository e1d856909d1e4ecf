"""Infinite schedule: down to a constant rate that new data can start from, and an annealing when a model is wanted.

    warm-up   p / warmup                                        over ``warmup`` of the run
    cooldown  shape from 1 to ``constant``                      over ``cooldown``
    constant  ``constant``
    anneal    constant · (final / constant)^u                   over the last ``anneal``, u from 0 to 1 within it

New data start from a checkpoint of the constant phase, without a warm-up: ``warmup`` = ``cooldown`` = 0. With
``constant`` = 1 this is warmup-stable-decay with an exponential decay.

Ibrahim, Therien, Gupta, Richter, Anthony, Lesort, Belilovsky, Rish, 2024, arXiv:2403.08763.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from assay.errors import UserError
from assay.optim.registries import schedules
from assay.optim.schedule import check_share, warm_up
from assay.optim.schedule.shapes import decayed

Positive = Annotated[float, Field(gt=0, le=1)]


@schedules.register("infinite")
class Infinite:
    """``constant`` and ``final`` are shares of the peak.

    Raises ``UserError`` if the phases are more than the run, or ``final`` is above ``constant``.
    """

    def __init__(
        self,
        *,
        warmup: float = 0.01,
        cooldown: float = 0.6,
        constant: Positive = 0.55,
        anneal: float = 0.2,
        final: Positive = 0.1,
        shape: Literal["cosine", "inverse-sqrt"] = "cosine",
    ) -> None:
        self.warmup = check_share("infinite", "warmup", warmup)
        self.cooldown = check_share("infinite", "cooldown", cooldown)
        self.anneal = check_share("infinite", "anneal", anneal)
        self.constant, self.final = constant, final
        self.shape: Literal["cosine", "inverse-sqrt"] = shape
        if warmup + cooldown + anneal > 1 + 1e-9:
            phases = f"warmup={warmup}, cooldown={cooldown} and anneal={anneal}"
            raise UserError(f"schedule 'infinite': {phases} are more than a whole run")
        if final > constant:
            raise UserError(f"schedule 'infinite': final={final} is above constant={constant}; annealing goes down")

    def __call__(self, progress: float) -> float:
        cooled, left = progress - self.warmup, 1 - progress
        if cooled < 0:
            return warm_up(progress, self.warmup)
        if cooled < self.cooldown:
            return decayed(self.shape, cooled / self.cooldown, 1.0, self.constant)
        if left >= self.anneal:
            return self.constant
        return decayed("exponential", 1 - max(left, 0.0) / self.anneal, self.constant, self.final)
