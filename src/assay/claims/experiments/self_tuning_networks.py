"""Dropout and weight decay tuned within one training, beside a grid of trainings at fixed values.

An MLP of one hidden layer is trained on a few digits of which some have a wrong label, so that it overfits without
either. The grid's networks have the same layers without a response. Each training takes the same number of steps; the
tuned one takes steps on the validation images besides, by which the grid's best is chosen, too.

MacKay, Vicol, Lorraine, Duvenaud, Grosse, 2019, arXiv:1903.03088.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.claims.digits import batches, digits
from assay.claims.experiments import experiments
from assay.claims.experiments.saf import with_noise
from assay.optim.self_tuning import (
    Hyperparameter,
    Hyperparameters,
    ResponsiveLinear,
    SelfTuner,
    dropout,
    squared_norm,
)

TUNED = (Hyperparameter("dropout", 0.05, 0.0, 0.9), Hyperparameter("weight_decay", 1e-4, 0.0))
DROPOUTS = (0.0, 0.25, 0.5, 0.75)
DECAYS = (0.0, 1e-3, 1e-2)
Batch = tuple[Tensor, Tensor]
Rates = Mapping[str, Tensor]


class Classifier(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden, self.head = ResponsiveLinear(64, hidden_size, 2), ResponsiveLinear(hidden_size, 10, 2)

    def forward(self, images: Float[Tensor, "batch 64"], h: Tensor, rates: Rates) -> Float[Tensor, "batch 10"]:
        x = F.relu(self.hidden(images, h))
        return self.head(dropout(x, rates["dropout"]) if rates else x, h)


def penalised(model: nn.Module, batch: Batch, h: Tensor, rates: Rates) -> Float[Tensor, ""]:
    """Cross-entropy, in training with half the decay times the weights' squared norm of each example."""
    loss = F.cross_entropy(model(batch[0], h, rates), batch[1])
    return loss + 0.5 * (rates["weight_decay"] * squared_norm(model, h)).mean() if rates else loss


@experiments.register("self-tuning-digits")
def self_tuning_digits(
    seed: int,
    *,
    images: int = 400,
    validation: float = 0.25,
    noise: float = 0.1,
    hidden_size: int = 128,
    warmup: int = 100,
    rounds: int = 500,
    batch_size: int = 64,
    lr: float = 0.03,
    tuning_lr: float = 0.01,
) -> dict[str, float]:
    """``tuned``, ``best`` and ``median``, each with its ``.loss`` on test images, in nats, and ``.accuracy``: of the
    network that tunes itself, of the fixed one with the least validation loss, and the median of the grid.
    ``tuned.dropout`` and ``tuned.weight_decay`` are where tuning ended. A round is two steps of training and one of
    tuning.
    """
    pixels, labels, test_pixels, test_labels = digits(seed)
    labels = with_noise(labels[:images], noise, seed)
    held = round(validation * images)
    valid = pixels[:held].flatten(1), labels[:held]
    train = pixels[held:images].flatten(1), labels[held:]
    test = test_pixels.flatten(1), test_labels
    steps = warmup + 2 * rounds

    def started() -> tuple[Classifier, torch.optim.Optimizer, Iterator[Batch]]:
        torch.manual_seed(seed)
        model = Classifier(hidden_size)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        return model, optimizer, shuffled(train, steps, batch_size, seed)

    with torch.random.fork_rng(devices=[]):
        fixed = []
        for rate, decay in itertools.product(DROPOUTS, DECAYS):
            model, optimizer, training = started()
            zero = torch.zeros(batch_size, 2)
            rates = {"dropout": torch.full((batch_size,), rate), "weight_decay": torch.full((batch_size,), decay)}
            for batch in training:
                optimizer.zero_grad()
                penalised(model, batch, zero, rates).backward()
                optimizer.step()
            fixed.append([evaluated(model, data, torch.zeros(1, 2)) for data in (valid, test)])
        model, optimizer, training = started()
        known = Hyperparameters(TUNED)
        tuner = SelfTuner(model, known, penalised, optimizer, lr=tuning_lr)
        tuning = shuffled(valid, rounds, batch_size, seed + 1)
        for step, batch in enumerate(training):
            tuner.train_step(batch, batch_size)
            if step >= warmup and (step - warmup) % 2 == 1:
                tuner.validation_step(next(tuning), batch_size)
        results = {"tuned": evaluated(model, test, known.repeated(1)), "best": min(fixed)[1]}
    results["median"] = (statistics.median(t[0] for _, t in fixed), statistics.median(t[1] for _, t in fixed))
    found = {f"{name}.loss": loss for name, (loss, _) in results.items()}
    found |= {f"{name}.accuracy": accuracy for name, (_, accuracy) in results.items()}
    return found | {f"tuned.{name}": value for name, value in known.current().items()}


def shuffled(data: Batch, steps: int, batch_size: int, seed: int) -> Iterator[Batch]:
    """Batches of one size, pass after pass."""
    images, labels = data
    for index in batches(len(labels), steps=steps, batch_size=batch_size, seed=seed):
        yield images[index], labels[index]


@torch.no_grad()
def evaluated(model: nn.Module, data: Batch, h: Float[Tensor, "1 2"]) -> tuple[float, float]:
    """Loss in nats and accuracy, without dropout."""
    logits = model(data[0], h.expand(len(data[0]), -1), {})
    return F.cross_entropy(logits, data[1]).item(), (logits.argmax(-1) == data[1]).double().mean().item()
