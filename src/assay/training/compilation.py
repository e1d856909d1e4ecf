"""When to compile a step, and compiling once for all the runs of a process that can share the graph."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from assay.optim import selections
from assay.training.budget import Budget
from assay.training.config import RunConfig
from assay.training.objective import Objective

EAGER_FLOPS = {"cpu": 60e9, "cuda": 1e14}
"""Sustained FLOP/s of an eager step, per thread of a CPU and per GPU: the order of magnitude is what matters."""


def saving(config: RunConfig) -> float:
    """Share of an eager step that compiling saves: min(1/3, w / hidden size), w = 40 (float32) or 80 (bfloat16).

    What is saved are passes over memory, which matter less beside the matrix products the wider the model is; fitted
    to ``benchmarks/train_speed.py``.
    """
    width = 80 if config.training.precision == "bfloat16" else 40
    return min(1 / 3, width / config.model.hidden_size)


def repays(config: RunConfig, *, device: str, threads: int | None = None, sharing: int = 1) -> bool:
    """Whether compiling pays for itself over ``sharing`` runs that use one graph after another.

    It does not where the trained parameters change from step to step, and the graph with them.

    The cost is taken as 20 s and 2 s per layer, the gain as ``saving`` of the eager time with ``threads`` threads
    of the CPU (by default torch's number).
    """
    if config.training.compile != "auto":
        return config.training.compile
    if getattr(selections[config.selection.name], "changes", True):
        return False
    budget = Budget.of(config)
    if budget.steps is None:
        seconds = budget.seconds or 0.0
    else:
        workers = (threads or torch.get_num_threads()) if device == "cpu" else 1
        seconds = budget.steps * budget.flops_per_step / (EAGER_FLOPS.get(device, 1e13) * workers)
    return saving(config) * seconds * sharing > 20 + 2 * config.model.depth


class Compiled:
    """Compiled objectives of this process, by what determines their graph; the last few are kept.

    A later run with the same graph gets the same module with new parameters in it, so that nothing is compiled
    again.
    """

    def __init__(self, capacity: int = 4) -> None:
        self.capacity = capacity
        self._kept: OrderedDict[str, tuple[Objective, Callable[..., Any]]] = OrderedDict()

    def get(self, config: RunConfig, fresh: Objective) -> tuple[Objective, Callable[..., Any]]:
        """An objective with ``fresh``'s parameters, and its compiled form."""
        key = json.dumps(
            {
                "model": config.model.dump(),
                "loss": config.loss.dump(),
                "precision": config.training.precision,
                "shape": [config.data.batch_size, config.data.sequence_length],
                "micro": config.training.micro_batch_size,
                "device": str(next(fresh.parameters()).device),
            },
            sort_keys=True,
        )
        if key in self._kept:
            objective, compiled = self._kept[key]
            objective.load_state_dict(fresh.state_dict())
            for parameter in objective.parameters():
                parameter.grad = None
        else:
            objective, compiled = fresh, torch.compile(fresh)
            self._kept[key] = objective, compiled
            if len(self._kept) > self.capacity:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return objective, compiled


compiled_objectives = Compiled()
