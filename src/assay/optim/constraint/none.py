"""No constraint: parameters stay as the optimizer leaves them."""

from __future__ import annotations

from assay.optim.registries import constraints


@constraints.register("none")
class Unconstrained:
    def __call__(self, step: int, lr: float) -> None:
        pass
