"""Where optimizers, schedules and constraints are registered."""

from __future__ import annotations

from typing import Protocol

import torch

from assay.registry import Registry


class Schedule(Protocol):
    """The learning rate over a run, as a share of its peak."""

    def __call__(self, progress: float) -> float:
        """The factor at ``progress`` in [0, 1): the share of the budget that is spent."""
        ...


class Constraint(Protocol):
    """What the parameters of a network are held to."""

    def __call__(self, step: int, lr: float) -> None:
        """Change them in place, after step ``step`` (from 1) of the optimizer at learning rate ``lr``."""
        ...


optimizers: Registry[torch.optim.Optimizer] = Registry("optimizer", "assay.optim")
schedules: Registry[Schedule] = Registry("schedule", "assay.optim.schedule")
constraints: Registry[Constraint] = Registry("constraint", "assay.optim.constraint")
