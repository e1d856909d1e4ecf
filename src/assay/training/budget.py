"""Budgets: how much a run may spend, as the share that is spent after each step."""

from __future__ import annotations

import dataclasses

from assay.errors import UserError
from assay.training.config import RunConfig
from assay.training.flops import flops_per_token


@dataclasses.dataclass(frozen=True)
class Budget:
    """``steps`` where the budget fixes their number, else ``seconds``."""

    steps: int | None
    seconds: float | None
    flops_per_step: float

    @classmethod
    def of(cls, config: RunConfig) -> Budget:
        """Raises ``UserError`` if the budget does not pay for one step."""
        training = config.training
        flops_per_step = config.tokens_per_step * flops_per_token(config.model, config.data.sequence_length)
        if training.seconds is not None:
            return cls(None, training.seconds, flops_per_step)
        if training.flops is not None:
            steps = int(training.flops // flops_per_step)
            price = f"one step costs {flops_per_step:.3g} FLOPs"
        else:
            steps = (training.tokens or 0) // config.tokens_per_step
            price = f"one step takes {config.tokens_per_step} tokens (batch_size × sequence_length)"
        if steps < 1:
            raise UserError(f"the budget does not pay for one step: {price}")
        return cls(steps, None, flops_per_step)

    def progress(self, step: int, seconds: float) -> float:
        """The share that is spent halfway through step ``step`` (from 0), started after ``seconds``."""
        if self.steps is not None:
            return (step + 0.5) / self.steps
        assert self.seconds is not None
        return min(seconds / self.seconds, 1.0)

    def spent(self, steps: int, seconds: float) -> float:
        """The share that is spent after ``steps`` steps in ``seconds``."""
        if self.steps is not None:
            return steps / self.steps
        assert self.seconds is not None
        return seconds / self.seconds
