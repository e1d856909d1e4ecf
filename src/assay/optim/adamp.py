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
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from assay.optim.base import Optimizer, adamw_step
from assay.optim.precision import accumulator, widened, write_back
from assay.optim.registries import optimizers

View = Literal["rows", "whole"]
FIRST_ROWS = 16
"""Rows that are looked at first: one that is not at right angles settles the test of all."""


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
        betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95),
        eps: Annotated[float, Field(gt=0)] = 1e-8,
        weight_decay: Annotated[float, Field(ge=0)] = 0.1,
        delta: Annotated[float, Field(ge=0)] = 0.1,
        wd_ratio: Annotated[float, Field(ge=0)] = 0.1,
    ) -> None:
        options = {"betas": betas, "eps": eps, "delta": delta, "wd_ratio": wd_ratio, "fused": True}
        super().__init__(params, lr, weight_decay=weight_decay, **options)

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
    by_shape: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, weight in enumerate(weights):
        if weight.ndim > 1:
            by_shape[tuple(weight.shape), weight.dtype, weight.device].append(i)
    largest: list[Tensor] = []
    for members in by_shape.values():
        ours, theirs = (torch.stack([x[i][:FIRST_ROWS].flatten(1) for i in members]) for x in (weights, gradients))
        largest += _row_cosines(ours, theirs, eps).amax(1).unbind()
    left = _below(largest, [i for members in by_shape.values() for i in members], weights, delta)
    largest = [_row_cosines(weights[i].flatten(1), gradients[i].flatten(1), eps).amax() for i in left]
    for i in _below(largest, left, weights, delta):
        views[i] = "rows"
    others = [i for i, weight in enumerate(weights) if weight.ndim > 1 and views[i] is None]
    if others:
        dots = torch.stack([torch.dot(weights[i].flatten(), gradients[i].flatten()) for i in others])
        norms = [
            torch.stack(torch._foreach_norm([x[i] for i in others])).clamp(min=eps) for x in (weights, gradients)
        ]
        for i, cosine in zip(others, (dots.abs() / norms[0] / norms[1]).tolist(), strict=True):
            views[i] = "whole" if cosine < _bound(weights[i], delta) else None
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


def _row_cosines(x: Float[Tensor, "*batch columns"], y: Float[Tensor, "*batch columns"], eps: float) -> Tensor:
    norms = [torch.linalg.vector_norm(rows, dim=-1).clamp(min=eps) for rows in (x, y)]
    return torch.linalg.vecdot(x, y).abs() / norms[0] / norms[1]


def _below(cosines: Sequence[Tensor], members: Sequence[int], weights: Sequence[Tensor], delta: float) -> list[int]:
    """The members whose cosine is below the bound for a row; fetched at once, so that a device is waited for once."""
    numbers = torch.stack(list(cosines)).tolist() if cosines else []
    return [i for i, cosine in zip(members, numbers, strict=True) if cosine < _bound(weights[i][0], delta)]


def _bound(view: Tensor, delta: float) -> float:
    return delta / math.sqrt(view.numel())
