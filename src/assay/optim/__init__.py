"""Optimizers, learning-rate schedules and constraints, one per file.

An optimizer is constructed with ``(groups, lr)``: parameter groups as ``parameter_groups`` makes them, and the
learning rate that suits the network's width. It may be any ``torch.optim.Optimizer``.
"""

from __future__ import annotations

from typing import Any

import torch

from assay.optim.groups import ParameterGroup, parameter_groups
from assay.optim.registries import Constraint, Schedule, constraints, optimizers, schedules
from assay.slots import Component

__all__ = [
    "Constraint",
    "ParameterGroup",
    "Schedule",
    "build_optimizer",
    "constraints",
    "optimizers",
    "parameter_groups",
    "schedules",
]


def build_optimizer(
    component: Component[torch.optim.Optimizer], model: torch.nn.Module, **context: Any
) -> torch.optim.Optimizer:
    """The configured optimizer over all trainable parameters of ``model``; ``context`` holds ``lr``."""
    return component.build(groups=parameter_groups(model), **context)
