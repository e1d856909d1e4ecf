"""α-BN and Core on corrupted digits, against a network's stored statistics and against those of the test batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assay.claims.digits import digits, train_classifier
from assay.claims.experiments import experiments
from assay.nn.norm.alpha_bn import Normalization, affine_parameters, alpha_bn, core_step

Corruption = Callable[[Float[Tensor, "count 8 8"], float, torch.Generator], Float[Tensor, "count 8 8"]]
Stream = list[tuple[Tensor, Tensor]]


def noise(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=generator)


def blur(images: Tensor, width: float, generator: torch.Generator) -> Tensor:
    line = torch.exp(-torch.arange(-2.0, 3.0).square() / (2 * width**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    return F.conv2d(F.pad(images[:, None], (2, 2, 2, 2), "replicate"), kernel[None, None])[:, 0]


def contrast(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    mean = images.mean((1, 2), keepdim=True)
    return mean + share * (images - mean)


CORRUPTIONS: dict[Corruption, tuple[float, float, float]] = {
    noise: (0.6, 0.9, 1.2),
    blur: (0.8, 1.0, 1.2),
    contrast: (0.4, 0.25, 0.15),
}
"""Each in three severities, from mild to severe."""

SOURCE_WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
BATCH_SIZES = (8, 64, 256)
CORE_RATES = (1e-4, 1e-3, 1e-2)
CORE_BATCH_SIZE = 64
LOSSES: dict[str, Normalization] = {"core": "classes", "gini": "samples"}


@experiments.register("alpha-bn-digits")
def alpha_bn_digits(seed: int, *, steps: int = 300) -> dict[str, float]:
    """Accuracies on test streams by ``source`` and ``test`` statistics alone, ``mixed``, and ``core`` from there on.

    A small convolutional network is trained on clean digits. Each corruption is a stream of batches from mild to
    severe, and a model starts afresh with each. The first three are means over streams in batches of 8, 64 and 256,
    and also stand by themselves (``mixed_8``); Core runs on batches of 64. α and Core's learning rate are those that
    do best on corrupted *training* images in batches of the same size, so that no test label chooses anything.
    ``gini`` is Core with its loss normalised over samples, where it is the Gini impurity, instead of over classes.
    """
    images, labels, test_images, test_labels = digits(seed)
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    train_classifier(network, images, labels, steps=steps, batch_size=64, lr=3e-3, seed=seed)
    network.eval()
    count = len(test_labels)
    found = {"clean": (network(test_images).argmax(-1) == test_labels).double().mean().item()}
    for batch_size in BATCH_SIZES:
        chosen_on = _streams(images[:count], labels[:count], batch_size, seed=2 * seed)
        tested_on = _streams(test_images, test_labels, batch_size, seed=2 * seed + 1)
        by_weight = {weight: _accuracy(network, weight, chosen_on) for weight in SOURCE_WEIGHTS}
        weight = max(by_weight, key=by_weight.__getitem__)
        found |= {
            f"source_weight_{batch_size}": weight,
            f"source_{batch_size}": _accuracy(network, 1.0, tested_on),
            f"test_{batch_size}": _accuracy(network, 0.0, tested_on),
            f"mixed_{batch_size}": _accuracy(network, weight, tested_on),
        }
        if batch_size == CORE_BATCH_SIZE:
            for name, normalization in LOSSES.items():
                by_rate = {rate: _accuracy(network, weight, chosen_on, rate, normalization) for rate in CORE_RATES}
                rate = max(by_rate, key=by_rate.__getitem__)
                found[name] = _accuracy(network, weight, tested_on, rate, normalization)
    for name in ("source", "test", "mixed"):
        found[name] = math.fsum(found[f"{name}_{batch_size}"] for batch_size in BATCH_SIZES) / len(BATCH_SIZES)
    return found


def _streams(images: Tensor, labels: Int[Tensor, " count"], batch_size: int, seed: int) -> list[Stream]:
    generator = torch.Generator().manual_seed(seed)
    streams = []
    for corruption, severities in CORRUPTIONS.items():
        stream: Stream = []
        for severity in severities:
            order = torch.randperm(len(labels), generator=generator)
            corrupted = corruption(images[order], severity, generator)
            stream += zip(corrupted.split(batch_size), labels[order].split(batch_size), strict=True)
        streams.append(stream)
    return streams


def _accuracy(
    network: nn.Module,
    source_weight: float,
    streams: list[Stream],
    core_rate: float | None = None,
    normalization: Normalization = "classes",
) -> float:
    right = total = 0
    for stream in streams:
        model = alpha_bn(network, source_weight)
        optimizer = torch.optim.Adam(affine_parameters(model), lr=core_rate or 0.0)
        for images, labels in stream:
            if core_rate is None:
                with torch.no_grad():
                    logits = model(images)
            else:
                logits = core_step(model, images, optimizer, normalization)
            right += int((logits.argmax(-1) == labels).sum())
            total += len(labels)
    return right / total
