"""Barriers between networks whose trainings part at a step, and what curvature says of them beforehand."""

from __future__ import annotations

import copy
import itertools

import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from assay.analysis.linear_mode_connectivity import Layer, connectivity, fork_angle
from assay.claims.digits import batches, digits
from assay.claims.experiments import experiments


@experiments.register("fork-barriers")
def fork_barriers(
    seed: int,
    *,
    forks: tuple[int, ...] = (0, 50, 200, 800),
    after: tuple[int, ...] = (50, 200, 800),
    depth: int = 5,
    width: int = 16,
    lr: float = 0.05,
) -> dict[str, float]:
    """A perceptron on digits trains to each step of ``forks``, and from there twice in two orders of the data.

    ``FORK.barrier`` and ``FORK.angle``: half way between the two, and in degrees, the most of ``after`` steps later.
    Over all forks and numbers of steps after them, ``rank.barriers`` is Spearman's correlation of the predicted with
    the measured barriers, both at ½. ``rank.layers`` is that over the layers of one pair, the mean of all pairs; a
    layer's barrier is the mean of those from either network.
    """
    images, labels, _, _ = digits(seed)
    data = images.flatten(1).double(), labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk: nn.Module = perceptron(width, depth)
    found: dict[str, float] = {}
    measured, predicted, ranks = [], [], []
    for before, fork in itertools.pairwise((0, *forks)):
        trunk = trained(trunk, data, steps=fork - before, lr=lr, order=seed)
        pair = [trunk, trunk]
        for earlier, steps in itertools.pairwise((0, *after)):
            order = ((seed * 10_000 + fork) * 10_000 + steps) * 2
            pair = [
                trained(one, data, steps=steps - earlier, lr=lr, order=order + which)
                for which, one in enumerate(pair)
            ]
            between = connectivity(pair[0], pair[1], cross_entropy, [data], points=3, predict=True)
            measured.append(between.line.barriers[1])
            predicted.append(between.predicted)
            ranks.append(spearmanr([both(layer) for layer in between.layers]).statistic)
        found |= {f"{fork}.barrier": measured[-1], f"{fork}.angle": fork_angle(trunk, *pair)}
    return found | {
        "rank.barriers": float(spearmanr(predicted, measured).statistic),
        "rank.layers": float(sum(ranks) / len(ranks)),
    }


def both(layer: Layer) -> tuple[float | None, float]:
    """A layer's barrier at ½, predicted and measured."""
    return layer.predicted, (layer.from_first.barriers[1] + layer.from_second.barriers[1]) / 2


def perceptron(width: int, depth: int) -> nn.Sequential:
    """Of ``depth`` matrices, from 64 pixels to 10 classes."""
    widths = [64, *[width] * (depth - 1), 10]
    layers = [(nn.Linear(before, after), nn.ReLU()) for before, after in itertools.pairwise(widths)]
    return nn.Sequential(*list(itertools.chain(*layers))[:-1]).double()


def cross_entropy(module: nn.Module, data: tuple[Float[Tensor, "batch 64"], Int[Tensor, " batch"]]) -> Tensor:
    return F.cross_entropy(module(data[0]), data[1])


def trained(module: nn.Module, data: tuple[Tensor, Tensor], *, steps: int, lr: float, order: int) -> nn.Module:
    """A copy, trained on by stochastic gradient descent with momentum 0.9, in batches of 32."""
    module = copy.deepcopy(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
    for index in batches(len(data[1]), steps=steps, batch_size=32, seed=order) if steps else ():
        optimizer.zero_grad()
        cross_entropy(module, (data[0][index], data[1][index])).backward()
        optimizer.step()
    return module
