"""Federated adversarial learning: clients train on their own adversarial samples, a server averages the updates.

    W_c ← U,  K times:  x̃ ← A(f_W, x, y),   W_c ← W_c − η_local ∇ mean loss(f_W(x̃), y)
    U ← U + η_global Σ_c (J_c / Σ J) (W_c − U)

U are the server's parameters and J_c the number of samples of client c, so that all samples count alike. With one
client, one local step and η_global = 1 it is adversarial training; without an attack it is federated averaging. In
theory the smallest robust loss over the rounds becomes as small as wished in wide networks, also for clients whose
data are distributed differently; so keep the best round, not the last.

Li, Song, Yang, 2022, arXiv:2208.03635.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError
from assay.optim.federated.attack import PGD
from assay.optim.federated.split import dirichlet_split

__all__ = ["PGD", "Client", "FederatedAdversarial", "dirichlet_split"]

Client = tuple[Tensor, Tensor]
"""The inputs and the labels that one client has."""


@dataclasses.dataclass(frozen=True)
class FederatedAdversarial:
    """``local_steps`` K of plain gradient descent at ``local_lr`` on each client, then one of the server.

    ``attack`` makes x̃ anew in every local step, from the client's own weights, or with ``regenerate="round"`` once,
    from the server's; ``None`` trains on x. A step takes all samples of a client, or ``batch_size`` of them in an
    order of ``seed``, which also draws the attack's random starts. ``loss`` is a mean over a batch.

    Raises ``UserError`` for no steps, no batch and rates that are negative or not finite.
    """

    attack: PGD | None
    local_steps: int = 5
    local_lr: float = 0.1
    global_lr: float = 1.0
    regenerate: Literal["step", "round"] = "step"
    batch_size: int | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("local_lr", "global_lr"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"{name}={value}: it should be at least 0 and finite")
        if self.local_steps < 1:
            raise UserError(f"local_steps={self.local_steps}: a client takes at least 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: a batch has at least 1 sample; None is all")
        if self.regenerate not in ("step", "round"):
            raise UserError(f"regenerate={self.regenerate!r}: it should be 'step' or 'round'")

    def round(self, model: nn.Module, clients: Sequence[Client], number: int) -> float:
        """Round ``number`` (from 0) on the server's ``model``, in place; what it does depends on nothing else.

        Returns the robust loss before the round: the mean over all samples, each attacked as in its first local step
        (with ``batch_size``, over the first batches). Buffers, such as running statistics, are averaged like
        parameters where they are floating-point numbers. Raises ``UserError`` for a client without samples.
        """
        sizes = [len(labels) for _, labels in clients]
        if not sizes or not all(sizes):
            raise UserError(f"clients with {sizes} samples: there should be clients, and each should have a sample")
        start = _state(model)
        changes = [torch.zeros_like(tensor) for tensor in start]
        robust_loss = 0.0
        for index, (inputs, labels) in enumerate(clients):
            weight = sizes[index] / sum(sizes)
            local = copy.deepcopy(model)
            seed = ((self.seed * 1_000_003 + number) * 1009 + index) % 2**63
            robust_loss += weight * self._train(local, inputs, labels, torch.Generator().manual_seed(seed))
            updates = torch._foreach_sub(_state(local), start)
            torch._foreach_add_(changes, updates, alpha=weight)
        torch._foreach_add_(start, changes, alpha=self.global_lr)
        return robust_loss

    def _train(self, model: nn.Module, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> float:
        """All steps of one client on its copy of the model; the loss of the first."""
        parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        at_once = self.attack is not None and self.regenerate == "round"
        if at_once:
            inputs = self._attacked(model, inputs, labels, generator)
        first = math.nan
        for step, index in enumerate(self._batches(len(labels), generator)):
            x, y = (inputs, labels) if index is None else (inputs[index], labels[index])
            if not at_once:
                x = self._attacked(model, x, y, generator)
            loss = self.loss(model(x), y)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-self.local_lr)
            if step == 0:
                first = loss.item()
        return first

    def _attacked(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return x if self.attack is None else self.attack(model, x, y, loss=self.loss, generator=generator)

    def _batches(self, count: int, generator: torch.Generator) -> Sequence[Tensor | None]:
        if self.batch_size is None or self.batch_size >= count:
            return [None] * self.local_steps
        needed = self.local_steps * self.batch_size
        passes = math.ceil(needed / count)
        order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
        return order[:needed].split(self.batch_size)


def _state(model: nn.Module) -> list[Tensor]:
    """What the server averages: trainable parameters and floating-point buffers."""
    parameters = [p.detach() for p in model.parameters() if p.requires_grad]
    return parameters + [buffer for buffer in model.buffers() if buffer.is_floating_point()]
