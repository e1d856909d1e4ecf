"""An exponential average of the last checkpoints, taken once, after training.

    A_1 = θ_1,    A_i = α θ_i + (1 − α) A_{i−1}

so that θ_i has the share α(1 − α)^{M−i}, and the oldest one the (1 − α)^{M−1} that is left. With ``corrected`` the
oldest has α(1 − α)^{M−1} like the rest, and all are divided by their sum, 1 − (1 − α)^M: shares then never fall from
old to new.

Luo, Sun, Wen, Shi, Cui, Dang, Lyu, Chen, 2025, arXiv:2511.18903.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from assay.optim.registries import averages


@averages.register("ema")
class ExponentialMean:
    """``last`` is M, the final weights among them; ``spacing`` the share of the budget between two of them."""

    def __init__(
        self,
        *,
        last: Annotated[int, Field(gt=1)] = 6,
        spacing: Annotated[float, Field(gt=0, lt=1)] = 0.02,
        alpha: Annotated[float, Field(gt=0, le=1)] = 0.2,
        corrected: bool = False,
    ) -> None:
        self.last, self.spacing, self.alpha, self.corrected = last, spacing, alpha, corrected

    def weights(self, count: int) -> list[float]:
        shares = [self.alpha * (1 - self.alpha) ** age for age in reversed(range(count))]
        if self.corrected:
            return [share / sum(shares) for share in shares]
        return [(1 - self.alpha) ** (count - 1), *shares[1:]]
