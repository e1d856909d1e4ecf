"""AdamP: Adam without the part of the update that only lengthens a scale-invariant weight.

    u = m̂ / (√v̂ + ε),    n = w / ‖w‖
    w ← (1 − ηλr) w − η (u − n⟨n, u⟩)    where |cos(g, w)| < δ / √columns,    else    w ← (1 − ηλ) w − ηu

A loss that does not change with ‖w‖ has a gradient at right angles to w. Momentum is not: it lengthens w, and with it
the effective step η / ‖w‖² falls faster than without momentum. So w is taken as scale-invariant where its gradient
is at right angles: all rows of the tensor (output channels) are, or the tensor as a whole is. There the update loses
its part along w, and the decay is r times as strong. Parameters of one dimension take Adam's step.

Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, 2020, arXiv:2006.08217.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from assay.optim.base import Betas, Optimizer, adamw_step
from assay.optim.precision import accumulator, widened, write_back
from assay.optim.registries import optimizers

View = Literal["rows", "whole"]


@optimizers.register("adamp")
class AdamP(Optimizer):
    """``delta`` is δ and ``wd_ratio`` r. Moments of parameters below float32 are float32.

    The test needs whole tensors, so it does not work on sharded parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        betas: Betas = (0.9, 0.95),
        eps: Annotated[float, Field(gt=0)] = 1e-8,
        weight_decay: Annotated[float, Field(ge=0)] = 0.1,
        delta: Annotated[float, Field(ge=0)] = 0.1,
        wd_ratio: Annotated[float, Field(ge=0)] = 0.1,
    ) -> None:
        options = {"betas": betas, "eps": eps, "delta": delta, "wd_ratio": wd_ratio, "fused": True}
        super().__init__(params, lr, options, weight_decay=weight_decay)

    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                for name in ("exp_avg", "exp_avg_sq"):
                    self.state[p][name] = torch.zeros_like(p, dtype=accumulator(p))
        weights, gradients = widened(parameters), widened(gradients)
        views = invariant_views(weights, gradients, group["delta"], group["eps"])
        for members, decay in by_decay(views, group["weight_decay"], group["wd_ratio"]):
            before = {i: weights[i].clone() for i in members if views[i]}
            states = [self.state[parameters[i]] for i in members]
            ours, theirs = ([x[i] for i in members] for x in (weights, gradients))
            adamw_step(group, ours, theirs, states, weight_decay=decay)
            for i, start in before.items():
                take_back_radial(weights[i], start, views[i], kept=1 - group["lr"] * decay, eps=group["eps"])
        write_back(parameters, weights)


def invariant_views(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], delta: float, eps: float
) -> list[View | None]:
    """For each weight the first view in which it looks scale-invariant: all its rows, or the tensor as a whole.

    A row of so many columns does if |cos(gradient, row)| < delta / √columns; a gradient of zero is at right angles.
    """
    views: list[View | None] = [None] * len(weights)
    matrices = [i for i, weight in enumerate(weights) if weight.ndim > 1]
    pairs = [(weights[i], gradients[i]) for i in matrices]
    found = _cosines([*pairs, *((weight[0], gradient[0]) for weight, gradient in pairs)], eps)
    left = []
    for i, whole, first_row in zip(matrices, found[: len(pairs)], found[len(pairs) :], strict=True):
        views[i] = "whole" if whole < delta / math.sqrt(weights[i].numel()) else None
        if first_row < _row_bound(weights[i], delta):
            left.append(i)
    largest = [_largest_cosine(weights[i], gradients[i], eps) for i in left]
    for i, cosine in zip(left, torch.stack(largest).tolist() if largest else [], strict=True):
        if cosine < _row_bound(weights[i], delta):
            views[i] = "rows"
    return views


def take_back_radial(
    weight: Float[Tensor, "..."],
    before: Float[Tensor, "..."],
    view: View | None,
    *,
    kept: float,
    eps: float,
) -> None:
    """Remove from ``weight``, in place, what the step from ``kept`` · ``before`` to it added along ``before``."""
    remove_along(weight, before, torch.sub(weight, before, alpha=kept), view, eps=eps)


def remove_along(target: Tensor, direction: Tensor, update: Tensor, view: View | None, *, eps: float) -> None:
    """target ← target − n⟨n, update⟩ for n = direction / ‖direction‖, by rows or for the whole tensor."""
    within = tuple(range(1 if view == "rows" else 0, target.ndim))
    norm = torch.linalg.vector_norm(direction, dim=within, keepdim=True) + eps
    along = (direction * update).sum(dim=within, keepdim=True) / norm / norm
    target.addcmul_(direction, along, value=-1)


def by_decay(views: Sequence[View | None], weight_decay: float, wd_ratio: float) -> Iterable[tuple[list[int], float]]:
    """Indices of weights that take the same decay, and that decay."""
    free = [i for i, view in enumerate(views) if view is None]
    invariant = [i for i, view in enumerate(views) if view is not None]
    return [(i, decay) for i, decay in ((free, weight_decay), (invariant, weight_decay * wd_ratio)) if i]


def _cosines(pairs: Sequence[tuple[Tensor, Tensor]], eps: float) -> list[float]:
    """Absolute cosines of tensors as a whole, fetched at once, so that a device is waited for once.

    A dot product is read from a CPU's cache five times as fast as a norm.
    """
    if not pairs:
        return []
    flat = [(x.flatten(), y.flatten()) for x, y in pairs]
    products = torch.stack([torch.dot(one, other) for x, y in flat for one, other in ((x, y), (x, x), (y, y))])
    across, *squares = products.view(-1, 3).unbind(1)
    norms = [square.sqrt().clamp(min=eps) for square in squares]
    cosines: list[float] = (across.abs() / norms[0] / norms[1]).tolist()
    return cosines


def _largest_cosine(weight: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """Of the absolute cosines of the rows."""
    rows = [x.flatten(1) for x in (weight, gradient)]
    norms = [x.square().sum(1).sqrt_().clamp_(min=eps) for x in rows]
    return ((rows[0] * rows[1]).sum(1).abs_() / norms[0] / norms[1]).amax()


def _row_bound(weight: Tensor, delta: float) -> float:
    return delta / math.sqrt(weight.numel() / len(weight))
