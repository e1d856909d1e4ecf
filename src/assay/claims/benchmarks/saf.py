"""A training step of a small convolutional network: plain, with SAF, with MESA, and with SAM's second pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from assay.claims.benchmarks import benchmarks
from assay.claims.experiments.saf import sharpness_aware_gradients
from assay.losses.mesa import MESA
from assay.losses.saf import SAF


@benchmarks.register("saf-step")
def saf_step(
    *, examples: int = 4096, batch_size: int = 64, channels: int = 32, size: int = 16, depth: int = 4
) -> dict[str, Callable[[], object]]:
    """``sgd``, ``saf``, ``mesa`` and ``sam``; SAF's store is full, so that every step has its penalty."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, size, size, generator=generator)
    labels = torch.randint(10, (batch_size,), generator=generator)
    index = torch.randperm(examples, generator=generator)[:batch_size]
    found: dict[str, Callable[[], object]] = {}
    for arm in ("sgd", "saf", "mesa", "sam"):
        torch.manual_seed(0)
        widths = [3] + [channels] * depth
        layers = [
            layer
            for a, b in itertools.pairwise(widths)
            for layer in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        ]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        saf, mesa = SAF(examples, 10, start=0, gap=1), MESA(model, start=0.0)
        saf.keep(torch.zeros(batch_size, 10), index, 0)

        def loss(arm: str = arm, model: nn.Module = model, saf: SAF = saf, mesa: MESA = mesa) -> torch.Tensor:
            logits = model(images)
            if arm == "mesa":
                mesa.begin_step(model, 1, 0.5)
                earlier = mesa.read(images)
                assert earlier is not None
                return mesa(logits[None], labels[None], earlier[None])
            return saf(logits, labels, index, 1) if arm == "saf" else F.cross_entropy(logits, labels)

        found[arm] = partial(step, model, optimizer, loss, radius=0.05 if arm == "sam" else None)
    return found


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], *, radius: float | None
) -> None:
    if radius is not None:
        sharpness_aware_gradients(model, loss, radius)
    else:
        optimizer.zero_grad()
        loss().backward()
    optimizer.step()
