"""How fast momentum wears down the step of weights whose length the loss does not see, with and without AdamP."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.claims.digits import accuracy, batches, digits
from assay.claims.experiments import experiments
from assay.optim.adamp import AdamP
from assay.optim.sgdp import SGDP

Build = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
BETAS = (0.9, 0.999)
ARMS: dict[str, tuple[Build, str]] = {
    "descent": (lambda params, lr: torch.optim.SGD(params, lr), "sgd_lr"),
    "sgd": (lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9), "sgd_lr"),
    "sgdp": (lambda params, lr: SGDP(params, lr, momentum=0.9), "sgd_lr"),
    "adam": (lambda params, lr: torch.optim.Adam(params, lr, betas=BETAS), "adam_lr"),
    "adamp": (lambda params, lr: AdamP(params, lr, betas=BETAS, weight_decay=0.0), "adam_lr"),
}


@experiments.register("effective-step")
def effective_step(
    seed: int,
    *,
    steps: int = 400,
    batch_size: int = 64,
    hidden_size: int = 128,
    depth: int = 3,
    sgd_lr: float = 0.1,
    adam_lr: float = 0.003,
) -> dict[str, float]:
    """What is left of the effective step after training a classifier of digits, and its test accuracy, by arm.

    Batch norm follows every weight but the head's, so that the loss does not change with the length of a row, and a
    rate works like rate / ‖row‖². ``ARM.left`` is the geometric mean over the rows of (‖row at 0‖ / ‖row‖)². Arms:
    gradient ``descent`` without momentum, ``sgd`` with it, ``sgdp``, ``adam`` and ``adamp``, all from the same
    weights, on the same batches, at a constant rate and without decay.
    """
    images, labels, test_images, test_labels = digits(seed)
    rates = {"sgd_lr": sgd_lr, "adam_lr": adam_lr}
    found: dict[str, float] = {}
    for name, (build, rate) in ARMS.items():
        torch.manual_seed(seed)
        model = classifier(hidden_size, depth)
        before = row_norms(model)
        optimizer = build(model.parameters(), rates[rate])
        for index in batches(len(labels), steps=steps, batch_size=batch_size, seed=seed):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
        found[f"{name}.left"] = (before / row_norms(model)).square().log().mean().exp().item()
        found[f"{name}.accuracy"] = accuracy(model.eval(), test_images, test_labels)
    return found


def classifier(hidden_size: int, depth: int) -> nn.Sequential:
    """``depth`` times a weight, batch norm and ReLU; a head."""
    layers: list[nn.Module] = [nn.Flatten()]
    for layer in range(depth):
        features = hidden_size if layer else 64
        layers += [nn.Linear(features, hidden_size, bias=False), nn.BatchNorm1d(hidden_size), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden_size, 10))


def row_norms(model: nn.Sequential) -> Tensor:
    """Of all weights that batch norm follows."""
    pairs = itertools.pairwise(model)
    weights = [one.weight for one, norm in pairs if isinstance(one, nn.Linear) and isinstance(norm, nn.BatchNorm1d)]
    return torch.cat([torch.linalg.vector_norm(weight.detach(), dim=1) for weight in weights])
