"""Where optimizers, schedules, gradient transforms, selections, constraints and averages are registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from assay.optim.groups import ParameterGroup
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


class Stateless:
    """What a checkpoint keeps of a component that follows from the configuration and the step alone."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass


class GradientTransform(Protocol):
    """What becomes of the gradients between the backward pass and the optimizer, after clipping."""

    def __call__(self, parameters: Sequence[nn.Parameter], step: int) -> None:
        """Change the gradients of ``parameters`` (all have one) in place, in step ``step`` (from 0)."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Selection(Protocol):
    """Which parameters a step trains. ``changes`` is whether that ever changes, so that no graph can be kept."""

    changes: bool

    def __call__(self, step: int) -> None:
        """Before step ``step`` (from 0): freeze and thaw parameters, and drop what the optimizer need not keep."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Transfer(Protocol):
    """What becomes of a learning rate and a weight decay that were tuned at another width."""

    width: int
    """The hidden size at which they were tuned."""

    def initialize(self, model: nn.Module) -> None:
        """Change freshly drawn weights in place to those that suit this width."""
        ...

    def groups(self, model: nn.Module) -> list[ParameterGroup]:
        """The trainable parameters, each once, with ``lr_scale`` and ``decay_scale`` where these are not 1."""
        ...


class Average(Protocol):
    """How the weights at the end are made of the last ones that were kept."""

    last: int
    """How many are averaged, the final ones among them."""
    spacing: float
    """Share of the budget between two of them."""

    def weights(self, count: int) -> list[float]:
        """The share of each of ``count`` checkpoints, from the oldest to the last; they sum to 1."""
        ...


optimizers: Registry[torch.optim.Optimizer] = Registry("optimizer", "assay.optim")
schedules: Registry[Schedule] = Registry("schedule", "assay.optim.schedule")
constraints: Registry[Constraint] = Registry("constraint", "assay.optim.constraint")
gradients: Registry[GradientTransform] = Registry("gradient transform", "assay.optim.gradient")
selections: Registry[Selection] = Registry("selection", "assay.optim.selection")
averages: Registry[Average] = Registry("average", "assay.optim.average")
transfers: Registry[Transfer] = Registry("transfer", "assay.optim.transfer")
