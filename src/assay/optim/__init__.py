"""Optimizers and what stands around them, one per file.

    selection            which parameters a step trains, before its forward pass
    gradient transform   what becomes of the gradients, after the backward pass and clipping
    optimizer            the step itself
    schedule             its learning rate over the run
    constraint           what the parameters are held to, after the step
    average              how the final weights are made of the last ones

An optimizer is constructed with ``(params, lr)``: parameters or groups as torch's optimizers take them (a run gives
groups as ``parameter_groups`` makes them), and the learning rate that suits the network's width. It may be any
``torch.optim.Optimizer``.
"""

from __future__ import annotations

from typing import Any

import torch

from assay.optim.groups import ParameterGroup, parameter_groups
from assay.optim.registries import (
    Average,
    Constraint,
    GradientTransform,
    Schedule,
    Selection,
    averages,
    constraints,
    gradients,
    optimizers,
    schedules,
    selections,
)
from assay.slots import Component

__all__ = [
    "Average",
    "Constraint",
    "GradientTransform",
    "ParameterGroup",
    "Schedule",
    "Selection",
    "averages",
    "build_optimizer",
    "constraints",
    "gradients",
    "optimizers",
    "parameter_groups",
    "schedules",
    "selections",
]


def build_optimizer(
    component: Component[torch.optim.Optimizer], model: torch.nn.Module, **context: Any
) -> torch.optim.Optimizer:
    """The configured optimizer over all trainable parameters of ``model``; ``context`` holds ``lr``."""
    return component.build(params=parameter_groups(model), **context)
