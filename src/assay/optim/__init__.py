"""Optimizers and what stands around them, one per file.

    transfer             what rate and decay, tuned at another width, are at this one
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
    Transfer,
    averages,
    constraints,
    gradients,
    optimizers,
    schedules,
    selections,
    transfers,
)
from assay.slots import Component

__all__ = [
    "Average",
    "Constraint",
    "GradientTransform",
    "ParameterGroup",
    "Schedule",
    "Selection",
    "Transfer",
    "averages",
    "build_optimizer",
    "constraints",
    "gradients",
    "optimizers",
    "parameter_groups",
    "schedules",
    "selections",
    "transfers",
]


def build_optimizer(
    component: Component[torch.optim.Optimizer],
    model: torch.nn.Module,
    transfer: Transfer | None = None,
    **context: Any,
) -> torch.optim.Optimizer:
    """The configured optimizer over all trainable parameters of ``model``; ``context`` holds ``lr``.

    With ``transfer`` its groups have their shares of that rate and of the optimizer's decay.
    """
    groups = parameter_groups(model) if transfer is None else transfer.groups(model)
    optimizer = component.build(params=groups, **context)
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
        if "weight_decay" in group:
            group["weight_decay"] *= group.get("decay_scale", 1.0)
    return optimizer
