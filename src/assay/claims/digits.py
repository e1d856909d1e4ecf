"""scikit-learn's digits, 1,797 grey images of 8 × 8 pixels in 10 classes, for experiments that take seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError
from assay.optim.groups import parameter_groups


def digits(
    seed: int,
) -> tuple[Float[Tensor, "train 8 8"], Int[Tensor, " train"], Float[Tensor, "test 8 8"], Int[Tensor, " test"]]:
    """Training images and labels, then test images and labels: 1,347 and 450, in the same shares of the classes.

    One mean and one deviation, those of all pixels of all images, bring the pixels to zero mean and unit variance;
    ``seed`` decides the split and nothing else. Raises ``UserError`` without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UserError("the digits data set needs scikit-learn: pip install 'assay[claims]'") from None
    found = load_digits()
    pixels = torch.from_numpy(found.images)
    images = ((pixels - pixels.mean()) / pixels.std(correction=0)).float()
    labels = torch.from_numpy(found.target).long()
    train, test = train_test_split(range(len(labels)), test_size=0.25, stratify=found.target, random_state=seed)
    return images[train], labels[train], images[test], labels[test]


def batches(count: int, *, steps: int, batch_size: int, seed: int) -> Iterator[Int[Tensor, " batch"]]:
    """Indices of ``steps`` batches below ``count``: one shuffled pass over the data after another, cut up."""
    generator = torch.Generator().manual_seed(seed)
    passes = math.ceil(steps * batch_size / count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    return iter(order[: steps * batch_size].split(batch_size))


def train_classifier(
    module: nn.Module,
    images: Tensor,
    labels: Int[Tensor, " count"],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    weight_decay: float = 0.01,
) -> None:
    """Train ``module`` (images to logits) in place, by AdamW on the cross-entropy.

    The learning rate falls linearly from ``lr`` to 0. Weight decay reaches matrices, and what a module lists in
    ``weight_decay_parameters``. ``seed`` decides the order of the data; the module is left in training mode.
    """
    groups = [
        {"params": group["params"], "weight_decay": weight_decay if group["decay"] else 0.0}
        for group in parameter_groups(module)
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    module.train()
    for index in batches(len(labels), steps=steps, batch_size=batch_size, seed=seed):
        loss = F.cross_entropy(module(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(module: nn.Module, images: Tensor, labels: Int[Tensor, " count"]) -> float:
    """The share of ``images``, taken as one batch, whose largest logit is that of their label.

    The module is used in the mode that it is in.
    """
    return (module(images).argmax(-1) == labels).double().mean().item()
