"""Digits that arrive in two halves: a perceptron trained on the first goes on with all of them.

It goes on from its weights (``warm``), from shrunk and perturbed ones (``shrunk``), or from scratch (``fresh``), each
time until 99 % of an epoch's training images are classified before they are learnt from. Optimizers start anew.

Ash, Adams, 2019, arXiv:1910.08475.
"""

from __future__ import annotations

import copy
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assay.claims.digits import accuracy, digits
from assay.claims.experiments import experiments
from assay.training.start.shrink_and_perturb import shrink_and_perturb


@experiments.register("warm-started-digits")
def warm_started_digits(
    seed: int,
    *,
    images: int | None = None,
    shrink: float = 0.4,
    perturb: float = 0.1,
    hidden_size: int = 100,
    lr: float = 1e-3,
    batch_size: int = 32,
    goal: float = 0.99,
    most_epochs: int = 400,
) -> dict[str, float]:
    """``ARM.accuracy`` on test images, and ``ARM.epochs`` over all training images until the goal.

    ``images`` are the training images of both halves, all unless given. An arm that misses the goal has NaN.
    """
    train, labels, test, test_labels = digits(seed)
    train, labels = train.flatten(1)[:images], labels[:images]
    half = len(labels) // 2

    def fit(model: nn.Module, count: int) -> int | None:
        return until(
            model, train[:count], labels[:count], goal, lr=lr, batch_size=batch_size, epochs=most_epochs, seed=seed
        )

    first = perceptron(hidden_size, 3 * seed)
    fit(first, half)
    shrunk = perceptron(hidden_size, 3 * seed + 1)
    shrink_and_perturb(first, shrunk, shrink=shrink, perturb=perturb)
    arms = {"warm": copy.deepcopy(first), "shrunk": shrunk, "fresh": perceptron(hidden_size, 3 * seed + 2)}
    found: dict[str, float] = {}
    for arm, model in arms.items():
        epochs = fit(model, len(labels))
        reached = accuracy(model, test.flatten(1), test_labels)
        found |= {
            f"{arm}.accuracy": math.nan if epochs is None else reached,
            f"{arm}.epochs": math.nan if epochs is None else epochs,
        }
    return found


def until(
    model: nn.Module,
    images: Float[Tensor, "count 64"],
    labels: Int[Tensor, " count"],
    goal: float,
    *,
    lr: float,
    batch_size: int,
    epochs: int,
    seed: int,
) -> int | None:
    """Train ``model`` by Adam until an epoch's accuracy is ``goal``: how many epochs; ``None`` if all are too few."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        right = 0
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed * 10_000 + epoch))
        for index in order.split(batch_size):
            logits = model(images[index])
            right += int((logits.argmax(-1) == labels[index]).sum())
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[index]).backward()
            optimizer.step()
        if right >= goal * len(labels):
            return epoch + 1
    return None


def perceptron(hidden_size: int, seed: int) -> nn.Sequential:
    """Of three matrices, as in the paper."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 10),
        )
