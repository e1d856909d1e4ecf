"""The blocks of a network, the parameters outside of them, and switching blocks on and off."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from assay.errors import UserError


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The entries of the stack with the most parameters, from the input on.

    A stack is an ``nn.ModuleList``, or an ``nn.Sequential`` in a network without one; entries without parameters are
    left out. Raises ``UserError`` if the network has no stack.
    """
    for kind in (nn.ModuleList, nn.Sequential):
        stacks = [module for module in model.modules() if isinstance(module, kind)]
        sizes = [sum(p.numel() for p in stack.parameters()) for stack in stacks]
        if any(sizes):
            stack = stacks[sizes.index(max(sizes))]
            return [block for block in stack if any(True for _ in block.parameters())]
    raise UserError(f"{type(model).__name__} has no stack of layers to choose from")


def trained(modules: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    """The parameters of each that require a gradient."""
    return [[p for p in module.parameters() if p.requires_grad] for module in modules]


def suffixes(model: nn.Module) -> list[list[nn.Parameter]]:
    """All trained parameters in layers, from the input on: one layer a block.

    What the network has before its blocks belongs to the first layer, what it has behind them to the last; a
    parameter with several uses belongs to its first.
    """
    blocks = blocks_of(model)
    place = {id(p): index for index, block in reversed([*enumerate(blocks)]) for p in block.parameters()}
    layers: list[list[nn.Parameter]] = [[] for _ in blocks]
    outside = 0
    for parameter in model.parameters():
        if id(parameter) in place:
            outside = len(blocks) - 1
        if parameter.requires_grad:
            layers[place.get(id(parameter), outside)].append(parameter)
    return layers


class Switch:
    """Trains some of the ``layers`` and freezes the others, whose gradients are freed.

    With an ``optimizer``, what it keeps of frozen layers is freed, too.
    """

    def __init__(
        self, layers: Sequence[Sequence[nn.Parameter]], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self.layers, self.optimizer = layers, optimizer

    def __call__(self, active: Collection[int]) -> None:
        kept = {id(parameter) for index in active for parameter in self.layers[index]}
        for parameter in (parameter for layer in self.layers for parameter in layer):
            parameter.requires_grad_(id(parameter) in kept)
            if not parameter.requires_grad:
                parameter.grad = None
                if self.optimizer is not None:
                    self.optimizer.state.pop(parameter, None)


def draw(weights: Float[np.ndarray, " n"], count: int, *key: int) -> list[int]:
    """``count`` of the numbers below n, one after another without replacement, each in proportion to ``weights``.

    Those of weight 0 come last and are equally likely. The draw follows from ``key`` alone.
    """
    arrivals = np.random.default_rng(key).exponential(size=len(weights))
    times = arrivals / np.where(weights > 0, weights, 1.0)
    return sorted(np.lexsort((times, weights <= 0))[:count].tolist())
