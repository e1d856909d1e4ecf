"""What optimizers share: groups by role, the order of a step, and AdamW for what a method leaves to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from assay.optim.groups import with_roles

Share = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Share, Share]


class Optimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` whose ``update`` gets a group's parameters and their gradients as lists.

    ``params`` are parameters or groups, as for torch's optimizers; ``weight_decay`` is for the groups that are
    decayed (see ``with_roles``), unless a group has its own. ``own`` are the other options of a group.
    """

    def __init__(self, params: ParamsT, lr: float, own: Mapping[str, Any], *, weight_decay: float) -> None:
        groups = [{"weight_decay": weight_decay if group["decay"] else 0.0, **group} for group in with_roles(params)]
        super().__init__(groups, {"lr": lr, **own})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient; ``closure`` computes the loss and the gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self.update(group, parameters, [p.grad for p in parameters])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but what was saved in float32 stays so where a parameter has less."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for parameter, index in zip(parameters, saved, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                loaded = self.state[parameter][name]
                if loaded.dtype != value.dtype:
                    self.state[parameter][name] = value.to(loaded.device, copy=True)

    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Change ``parameters`` in place, by the options in ``group`` and what ``state`` keeps of each."""
        raise NotImplementedError


class MatrixOptimizer(Optimizer):
    """Groups of role ``matrix`` take ``update_matrices``, all others AdamW with ``betas`` and ``eps``.

    A group's ``fused`` tells torch that a loaded ``step`` belongs on the parameter's device.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        own: Mapping[str, Any],
        *,
        betas: Betas = (0.9, 0.95),
        eps: Annotated[float, Field(ge=0)] = 1e-8,
        weight_decay: Annotated[float, Field(ge=0)] = 0.1,
    ) -> None:
        super().__init__(params, lr, {"betas": betas, "eps": eps, "fused": True, **own}, weight_decay=weight_decay)

    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        if group["role"] == "matrix":
            self.update_matrices(group, parameters, gradients)
        else:
            self.update_adamw(group, parameters, gradients)

    def update_matrices(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """``update`` for weights between hidden layers, of two dimensions or more."""
        raise NotImplementedError

    def update_adamw(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
        adamw_step(group, parameters, gradients, [self.state[p] for p in parameters])


def adamw_step(
    group: Mapping[str, Any],
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    **changed: float,
) -> None:
    """AdamW's step on ``weights``, in place, by a group's options; ``changed`` are ``lr`` or ``weight_decay``.

    ``states`` have ``step``, ``exp_avg`` and ``exp_avg_sq``.
    """
    options = {"lr": group["lr"], "weight_decay": group["weight_decay"], **changed}
    adamw(
        list(weights),
        list(gradients),
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=group["fused"],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        eps=group["eps"],
        maximize=False,
        **options,
    )
