"""A tower of residual branches without norms: its expansion, its size, and whether it can be trained.

    x_k = x_{k−1} + λ W'_k relu(W_k x_{k−1}),    k = 1 .. n

Dherin, Munn, 2025, arXiv:2510.03470.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.claims.digits import accuracy, digits, train_classifier
from assay.claims.experiments import experiments
from assay.nn.residual.expansion import expansion
from assay.nn.residual.scaled import ScaledResidual


class Tower(nn.Module):
    """Images to logits of 10 classes, through ``depth`` branches that are scaled as ``branch`` says.

    Weights are drawn so that a branch keeps the mean square of its input.
    """

    def __init__(self, depth: int, hidden_size: int, branch: float) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, hidden_size)
        self.branches = nn.ModuleList(_branch(hidden_size) for _ in range(depth))
        self.head = nn.Linear(hidden_size, 10)
        self.residual = ScaledResidual(hidden_size, depth, branch=branch)

    def forward(self, images: Float[Tensor, "batch 8 8"]) -> Float[Tensor, "batch 10"]:
        return self.head(self.tower(self.encoder(images.flatten(1))))

    def tower(self, x: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch hidden"]:
        state = self.residual.start(x)
        for index, branch in enumerate(self.branches):
            state = self.residual.write(state, branch(self.residual.read(state, index)), index)
        return self.residual.finish(state)


def _branch(hidden_size: int) -> nn.Sequential:
    first, second = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(2))
    nn.init.normal_(first.weight, std=(2 / hidden_size) ** 0.5)
    nn.init.normal_(second.weight, std=hidden_size**-0.5)
    return nn.Sequential(first, nn.ReLU(), second)


def _scales(depth: int) -> dict[str, float]:
    return {"unscaled": 1.0, "root": depth**-0.5, "inverse": 1 / depth}


def _fresh(seed: int, depth: int, hidden_size: int, branch: float) -> Tower:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tower(depth, hidden_size, branch)


def _tanh(weight: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x @ weight)


@experiments.register("residual-expansion")
@torch.no_grad()
def residual_expansion(seed: int, *, depth: int = 64, hidden_size: int = 128, modules: int = 6) -> dict[str, float]:
    """``order``: the power of λ by which what second order leaves out shrinks, for tanh ``modules``.

    ``unscaled``, ``root`` and ``inverse``: ‖x_n‖ / ‖x_0‖ in root mean square over random inputs, for fresh towers
    with λ = 1, 1/√n and 1/n.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(modules, 4, 4, generator=generator, dtype=torch.float64)
    branches = [functools.partial(_tanh, weight) for weight in weights]
    x = torch.randn(4, generator=generator, dtype=torch.float64)
    terms = expansion(branches, x, 2)

    def left_out(scale: float) -> float:
        state = x
        for branch in branches:
            state = state + scale * branch(state)
        return float((state - terms[0] - scale * terms[1] - scale**2 * terms[2]).norm())

    found = {"order": math.log2(left_out(0.01) / left_out(0.005))}
    inputs = torch.randn(256, hidden_size, generator=generator)
    for name, scale in _scales(depth).items():
        grown = _fresh(seed, depth, hidden_size, scale).tower(inputs)
        found[name] = float(grown.norm() / inputs.norm())
    return found


@experiments.register("residual-tower")
def residual_tower(
    seed: int,
    *,
    depth: int = 64,
    hidden_size: int = 64,
    steps: int = 120,
    batch_size: int = 64,
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2),
) -> dict[str, float]:
    """``unscaled``, ``root``, ``inverse``: accuracy on held-out digits after training, λ = 1, 1/√n and 1/n.

    It is the best over the learning rates, the same for all.
    """
    images, labels, test_images, test_labels = digits(seed)
    found = {}
    for name, scale in _scales(depth).items():
        accuracies = []
        for lr in lrs:
            model = _fresh(seed, depth, hidden_size, scale)
            train_classifier(model, images, labels, steps=steps, batch_size=batch_size, lr=lr, seed=seed)
            accuracies.append(accuracy(model, test_images, test_labels))
        found[name] = max(accuracies)
    return found
