"""WSD-S: a decay before each of several budgets, after which training goes on at the peak from the decayed weights.

    budgets  0 = T_0 < T_1 < ... < T_k = 1, as shares of the run
    D_j = decay · (T_j − T_{j−1}), in the first cycle at most what the warm-up leaves
    f(p) = min(1, p / warmup)                                        T_{j−1} ≤ p < T_j − D_j
    f(p) = shape from 1 to ``final``, at (p − (T_j − D_j)) / D_j     T_j − D_j ≤ p < T_j

The checkpoints at the budgets are what the run is for: ``training.keep`` lists the same shares. Moments and data go
on over them. Without ``budgets`` it is warmup-stable-decay; with ``decay`` = 1 and a cosine, a cosine with warm
restarts.

Wen, Li, Wang, Hall, Liang, Ma, 2024, arXiv:2410.05192.
"""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import Field

from assay.errors import UserError
from assay.optim.registries import schedules
from assay.optim.schedule import check_share, warm_up
from assay.optim.schedule.shapes import Shape, check_end, decayed


@schedules.register("wsd-s")
class WSDS:
    """``budgets`` without the run's end, which is the last one; ``decay`` is the share of each cycle.

    Raises ``UserError`` if budgets do not rise, if the warm-up outlasts the first, or if the shape never reaches
    ``final``.
    """

    def __init__(
        self,
        *,
        budgets: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.25, 0.5),
        warmup: float = 0.05,
        decay: Annotated[float, Field(gt=0, le=1)] = 0.1,
        final: float = 0.1,
        shape: Shape = "inverse",
    ) -> None:
        self.warmup = check_share("wsd-s", "warmup", warmup)
        self.final = check_share("wsd-s", "final", final)
        check_end("wsd-s", shape, "final", final)
        self.decay, self.shape = decay, shape
        self.ends = (*budgets, 1.0)
        if any(after <= before for before, after in itertools.pairwise(self.ends)):
            raise UserError(f"schedule 'wsd-s': budgets={list(budgets)} do not rise; give each one once, in order")
        if warmup > self.ends[0]:
            raise UserError(f"schedule 'wsd-s': warmup={warmup} goes on after the first budget, {self.ends[0]}")

    def __call__(self, progress: float) -> float:
        start, end = 0.0, self.ends[0]
        for budget in self.ends[1:]:
            if progress >= end:
                start, end = end, budget
        length = min(self.decay * (end - start), end - max(start, self.warmup))
        left = end - progress
        if left >= length:
            return warm_up(progress, self.warmup)
        return decayed(self.shape, 1 - max(left, 0.0) / length, 1.0, self.final)
