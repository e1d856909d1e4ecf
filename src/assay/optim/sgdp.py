"""SGDP: gradient descent with momentum, without the part that only lengthens a scale-invariant weight.

    m ← μm + g,    u = m, or g + μm with Nesterov's momentum
    w ← (1 − ηλr / (1 − μ)) w − η (u − n⟨n, u⟩)    where w looks scale-invariant, n = w / ‖w‖
    w ← (1 − ηλ / (1 − μ)) w − ηu                  elsewhere

The test is AdamP's. Without Nesterov's momentum u is the buffer m itself, which loses its part along w, too, as in
the authors' program. The decay is decoupled and divided by 1 − μ, so it is 1 / (1 − μ) times that of torch's SGD in
one step, and equal to it over many.

Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, 2020, arXiv:2006.08217.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from assay.optim.adamp import (
    by_decay,
    invariant_views,
    remove_along,
    take_back_radial,
)
from assay.optim.base import Optimizer, Share
from assay.optim.precision import accumulator, widened, write_back
from assay.optim.registries import optimizers


@optimizers.register("sgdp")
class SGDP(Optimizer):
    """``momentum`` is μ, ``delta`` δ and ``wd_ratio`` r.

    Buffers of parameters below float32 are float32. The test needs whole tensors, so it does not work on sharded
    parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: Share = 0.9,
        nesterov: bool = False,
        eps: Annotated[float, Field(gt=0)] = 1e-8,
        weight_decay: Annotated[float, Field(ge=0)] = 0.0,
        delta: Annotated[float, Field(ge=0)] = 0.1,
        wd_ratio: Annotated[float, Field(ge=0)] = 0.1,
    ) -> None:
        options = {"momentum": momentum, "nesterov": nesterov, "eps": eps, "delta": delta, "wd_ratio": wd_ratio}
        super().__init__(params, lr, options, weight_decay=weight_decay)

    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        lr, momentum, eps = group["lr"], group["momentum"], group["eps"]
        for p in parameters:
            if momentum and not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p, dtype=accumulator(p))
        buffers = [self.state[p].get("momentum") for p in parameters]
        weights, gradients = widened(parameters), widened(gradients)
        views = invariant_views(weights, gradients, group["delta"], eps)
        before = {i: weights[i].clone() for i, view in enumerate(views) if view}
        kept: dict[int, float] = {}
        for members, decay in by_decay(views, group["weight_decay"], group["wd_ratio"]):
            factor = 1 - lr * decay / (1 - momentum)
            if decay:
                torch._foreach_mul_([weights[i] for i in members], factor)
            kept |= dict.fromkeys(members, factor)
        sgd(
            weights,
            gradients,
            buffers,
            fused=True,
            weight_decay=0.0,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )
        for i, start in before.items():
            take_back_radial(weights[i], start, views[i], kept=kept[i], eps=eps)
            if (buffer := buffers[i]) is not None and not group["nesterov"]:
                remove_along(buffer, start, buffer, views[i], eps=eps)
        write_back(parameters, weights)
