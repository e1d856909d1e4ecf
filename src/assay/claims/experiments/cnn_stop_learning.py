"""A convolutional network on digits: where the spread of its layers would stop it, and what that costs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from assay.analysis.cnn_stop_learning import StopLearning
from assay.claims.digits import accuracy, batches, digits
from assay.claims.experiments import experiments


@experiments.register("cnn-stop-learning")
def cnn_stop_learning(
    seed: int,
    *,
    epochs: int = 60,
    widths: tuple[int, ...] = (16, 32, 64),
    lr: float = 0.1,
    batch_size: int = 64,
    drops: int = 3,
) -> dict[str, float]:
    """Two trainings of ``epochs``: ``steps`` divides the learning rate by 10 at each of ``drops`` equal parts but the
    first, ``constant`` does not.

    Of each, ``saved`` is the share of the epochs behind the stop (0 if the rule never stops) and ``loss`` how much
    lower the test accuracy is at the stop than at the end; ``accuracy`` is the latter.
    """
    found: dict[str, float] = {}
    for name, parts in (("steps", drops), ("constant", 1)):
        curve, stop = _train(seed, epochs=epochs, widths=widths, lr=lr, batch_size=batch_size, parts=parts)
        found |= {
            f"{name}.saved": 1 - stop / epochs,
            f"{name}.loss": curve[-1] - curve[stop - 1],
            f"{name}.accuracy": curve[-1],
        }
    return found


def _train(
    seed: int, *, epochs: int, widths: tuple[int, ...], lr: float, batch_size: int, parts: int
) -> tuple[list[float], int]:
    """Test accuracy after each epoch, and how many epochs the rule would have trained."""
    images, labels, test_images, test_labels = digits(seed)
    x, test_x = images[:, None], test_images[:, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = [
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2), nn.ReLU())
            for before, after in zip((1, *widths), widths, strict=False)
        ]
        side = images.shape[-1] // 2 ** len(widths)
        model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(widths[-1] * side**2, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, epochs // parts), gamma=0.1)
    each = len(labels) // batch_size
    order = batches(len(labels), steps=epochs * each, batch_size=batch_size, seed=seed)
    curve: list[float] = []
    stop: int | None = None
    with StopLearning(blocks) as rule:
        for epoch in range(1, epochs + 1):
            model.train()
            for _ in range(each):
                index = next(order)
                optimizer.zero_grad()
                F.cross_entropy(model(x[index]), labels[index]).backward()
                optimizer.step()
            schedule.step()
            if rule.end_epoch() and stop is None:
                stop = epoch
            curve.append(accuracy(model.eval(), test_x, test_labels))
    return curve, stop or epochs
