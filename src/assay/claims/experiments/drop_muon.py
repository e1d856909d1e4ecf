"""Muon on all layers of a small convolutional network beside Muon on a random suffix of them, on digits.

Both arms search the same learning rates, and of each the one that needs the fewest operations counts. Operations are
those of matrix products and convolutions: of the forward pass, of the backward pass to the drawn layer, and of
orthogonalising the layers from there on.

Gruntkowska, Maziane, Qu, Richtárik, 2025, arXiv:2510.02239.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from assay.claims.digits import batches, digits
from assay.claims.experiments import experiments
from assay.optim.muon import Muon
from assay.optim.selection.drop import Drop


class Spent(NamedTuple):
    """What was spent until the accuracy was reached; infinite if it was not."""

    operations: float
    seconds: float
    steps: float


@experiments.register("drop-muon")
def drop_muon(
    seed: int,
    *,
    channels: Sequence[int] = (64, 128, 256),
    lrs: Sequence[float] = (0.02, 0.04, 0.08),
    accuracy: float = 0.99,
    batch_size: int = 256,
    steps: int = 100,
    every: int = 2,
) -> dict[str, float]:
    """``ARM.operations``, ``ARM.seconds`` and ``ARM.steps`` to ``accuracy`` on the training images.

    The arms are ``muon``, to which the network is one layer, and ``drop``, which draws the first one uniformly.
    Accuracy is looked at ``every`` so many steps, outside of what is counted and timed (in processor time); what does
    not reach it within ``steps`` is infinite.
    """
    images, labels, _, _ = digits(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = network(channels)
    found: dict[str, float] = {}
    for arm in ("muon", "drop"):
        runs = []
        for lr in lrs:
            model = copy.deepcopy(fresh)
            order = batches(len(images), steps=steps, batch_size=batch_size, seed=seed)
            optimizer = Muon(model.parameters(), lr, weight_decay=0.0)
            selection = Drop(nn.ModuleList([model]) if arm == "muon" else model, seed)
            runs.append(spent(model, optimizer, selection, images[:, None], labels, list(order), accuracy, every))
        best = min(runs)
        found |= {f"{arm}.{name}": value for name, value in best._asdict().items()}
    return found


def network(channels: Sequence[int]) -> nn.Sequential:
    """Convolutions of 3 × 3 with a halving of 8 × 8 pixels behind each, and a linear map to 10 classes."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip([1, *channels], channels, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    side = 8 >> len(channels)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, 10))


def spent(
    model: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    selection: Drop,
    images: Tensor,
    labels: Tensor,
    order: list[Tensor],
    accuracy: float,
    every: int,
) -> Spent:
    costs: dict[int, int] = {}
    operations, seconds = 0, 0.0
    for step, index in enumerate(order):
        first = selection.first(step)
        if first not in costs:
            costs[first] = operations_of_a_step(model, optimizer, selection, step, images[index], labels[index])
        operations += costs[first]
        start = time.process_time()
        take_step(model, optimizer, selection, step, images[index], labels[index])
        seconds += time.process_time() - start
        if (step + 1) % every == 0:
            with torch.no_grad():
                right = (model(images).argmax(1) == labels).float().mean().item()
            if right >= accuracy:
                return Spent(operations, seconds, step + 1)
    return Spent(float("inf"), float("inf"), float("inf"))


def take_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, selection: Drop, step: int, x: Tensor, y: Tensor
) -> None:
    selection(step)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def operations_of_a_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, selection: Drop, step: int, x: Tensor, y: Tensor
) -> int:
    """Counted on copies, which are thrown away."""
    model, optimizer, selection = copy.deepcopy((model, optimizer, selection))
    with FlopCounterMode(display=False) as counter:
        take_step(model, optimizer, selection, step, x, y)
    return counter.get_total_flops()
