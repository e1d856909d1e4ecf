"""A deep network from a poor start, with and without noise on its gradients.

A fully-connected network of ``depth`` hidden layers names digits. With all weights at zero nothing below the last
offset gets a gradient; with small ones it shrinks from layer to layer. Neelakantan et al., 2015, arXiv:1511.06807.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from assay.claims.digits import accuracy, batches, digits
from assay.claims.experiments import experiments
from assay.optim.gradient.noise import GradientNoise


def deep_network(depth: int, width: int, init_std: float, generator: torch.Generator) -> nn.Sequential:
    """Weights are drawn with the deviation ``init_std``, offsets are zero."""
    layers: list[nn.Module] = [nn.Flatten()]
    for place in range(depth):
        layers += [nn.Linear(64 if place == 0 else width, width), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(width, 10))
    with torch.no_grad():
        for parameter in network.parameters():
            drawn = init_std * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn if parameter.ndim == 2 else torch.zeros_like(parameter))
    return network


@experiments.register("gradient-noise-deep")
def gradient_noise_deep(
    seed: int,
    *,
    optimizer: Literal["sgd", "adam"] = "sgd",
    lr: float = 0.1,
    etas: tuple[float, ...] = (0.03,),
    init_std: float = 0.0,
    depth: int = 20,
    width: int = 50,
    steps: int = 6000,
    batch_size: int = 100,
    clip: float = 10.0,
) -> dict[str, float]:
    """Test accuracies ``plain`` and with ``noise`` on the gradients, from one start and in one order.

    Of several variances ``etas`` the one counts that classifies most training images. The noise comes after the
    gradients are clipped to a norm of ``clip``.
    """
    images, labels, test_images, test_labels = digits(seed)

    def train(eta: float) -> tuple[float, float]:
        network = deep_network(depth, width, init_std, torch.Generator().manual_seed(seed))
        parameters = list(network.parameters())
        noise = GradientNoise(seed, eta=eta)
        kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
        rule: torch.optim.Optimizer = kind(parameters, lr=lr, foreach=True)
        for step, index in enumerate(batches(len(labels), steps=steps, batch_size=batch_size, seed=seed)):
            rule.zero_grad()
            F.cross_entropy(network(images[index]), labels[index]).backward()
            nn.utils.clip_grad_norm_(parameters, clip)
            noise(parameters, step)
            rule.step()
        return accuracy(network, images, labels), accuracy(network, test_images, test_labels)

    return {"plain": train(0.0)[1], "noise": max(train(eta) for eta in etas)[1]}
