"""The plain mean of the last checkpoints (SMA).

    w_i = 1 / M

Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, 2018, arXiv:1803.05407.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from assay.optim.registries import averages


@averages.register("mean")
class Mean:
    """``last`` is M, the final weights among them; ``spacing`` the share of the budget between two of them."""

    def __init__(
        self, *, last: Annotated[int, Field(gt=1)] = 6, spacing: Annotated[float, Field(gt=0, lt=1)] = 0.02
    ) -> None:
        self.last, self.spacing = last, spacing

    def weights(self, count: int) -> list[float]:
        return [1 / count] * count
