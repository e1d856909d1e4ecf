"""Training and tuning in turns; ``assay.optim.self_tuning`` has the formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import UserError
from assay.optim.self_tuning.hyperparameters import Hyperparameters

Rates = Mapping[str, Float[Tensor, " batch"]]
Loss = Callable[[nn.Module, Any, Float[Tensor, "batch hyperparameters"], Rates], Float[Tensor, ""]]


class SelfTuner:
    """Steps on training data move the network, steps on validation data its hyper-parameters::

        tuner = SelfTuner(model, hyperparameters, loss, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
        for _ in range(warmup):
            tuner.train_step(next(training), size)
        for _ in range(rounds):
            tuner.train_step(next(training), size)
            tuner.train_step(next(training), size)
            tuner.validation_step(next(validation), size)

    ``loss(model, batch, h, rates)`` is the mean over the batch, of ``size`` examples: h goes to the responsive
    layers, and ``rates`` are the hyper-parameters by name, for dropout or penalties in training. In a validation step
    the model is in evaluation mode, and ``rates`` is empty: the loss must have no dropout, augmentation or penalty
    then. Validation data are trained on, too, by as many numbers as there are hyper-parameters: keep test data apart.

    ``optimizer`` holds the network's parameters alone, without a decay of its own; ``lr`` is Adam's for h and s. With
    ``tune_scales=False`` the perturbations keep their width, and validation steps take h as it is. Raises
    ``UserError`` for settings out of range, and for an optimizer that holds the hyper-parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        hyperparameters: Hyperparameters,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        lr: float = 3e-3,
        entropy_weight: float = 1e-3,
        tune_scales: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if lr <= 0 or entropy_weight < 0:
            raise UserError(
                f"lr={lr}, entropy_weight={entropy_weight}; the rate must be positive, the weight at least 0"
            )
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if held & {id(p) for p in hyperparameters.parameters()}:
            raise UserError("the optimizer of the network must not hold the hyper-parameters; the tuner has its own")
        self.model, self.hyperparameters, self.loss, self.optimizer = model, hyperparameters, loss, optimizer
        self.entropy_weight, self.tune_scales, self.generator = entropy_weight, tune_scales, generator
        tuned = list(hyperparameters.parameters()) if tune_scales else [hyperparameters.values]
        self.outer = torch.optim.Adam(tuned, lr=lr)

    def train_step(self, batch: Any, size: int) -> float:
        """A step of the network on ``batch`` with perturbed hyper-parameters; the loss before it."""
        self.model.train()
        h = self.hyperparameters.perturbed(size, self.generator).detach()
        loss = self.loss(self.model, batch, h, self.hyperparameters.constrained(h))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def validation_step(self, batch: Any, size: int) -> float:
        """A step of the hyper-parameters on ``batch``; the validation loss before it."""
        self.model.eval()
        known = self.hyperparameters
        h = known.perturbed(size, self.generator) if self.tune_scales else known.repeated(size)
        loss = self.loss(self.model, batch, h, {})
        total = loss - self.entropy_weight * known.entropy() if self.tune_scales else loss
        tuned = [p for group in self.outer.param_groups for p in group["params"]]
        for parameter, gradient in zip(tuned, torch.autograd.grad(total, tuned), strict=True):
            parameter.grad = gradient
        self.outer.step()
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """All but the network's own: hyper-parameters, both optimizers, and the generator if there is one."""
        state = {"hyperparameters": self.hyperparameters.state_dict(), "outer": self.outer.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict()}
        return state if self.generator is None else state | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.hyperparameters.load_state_dict(state["hyperparameters"])
        self.outer.load_state_dict(state["outer"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.generator is not None:
            self.generator.set_state(state["generator"])
