"""How near CaRe-BN's moving statistics are to the true ones, beside an exponential moving average of 0.1."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from assay.claims.digits import accuracy, digits
from assay.claims.experiments import experiments
from assay.nn.norm.care_bn import CaReBN, recalibrate

THRESHOLD = 0.5
SPIKE_STEPS = 5


@experiments.register("care-bn-drift")
def care_bn_drift(seed: int, *, steps: int = 1000, samples: int = 256, features: int = 64) -> dict[str, float]:
    """Mean squared errors of the moving mean and variance on normal data whose true ones are known.

    ``drift``: at each step the mean moves by 0.1 true deviations, and the logarithm of the variance by 0.1.
    ``jumps``: every 100 steps both are drawn anew. ``static``: nothing moves. Errors are in units of the true
    deviation and of the true variance; the first tenth of the steps does not count.
    """
    found: dict[str, float] = {}
    for name, moves in (("drift", _walk), ("jumps", _jumps), ("static", _stand)):
        generator = torch.Generator().manual_seed(seed)
        care, average = CaReBN(features).train(), nn.BatchNorm1d(features, momentum=0.1).train()
        errors: list[list[Tensor]] = []
        for step, (mean, log_variance) in enumerate(moves(features, steps, generator)):
            variance = log_variance.exp()
            batch = mean + variance.sqrt() * torch.randn(samples, features, generator=generator)
            care(batch)
            average(batch)
            if step >= steps // 10:
                errors.append(
                    [
                        *_errors(care.moving_mean, care.moving_var, mean, variance),
                        *_errors(average.running_mean, average.running_var, mean, variance),
                    ]
                )
        means = torch.tensor(errors).mean(0).tolist()
        names = ("care_mean", "care_variance", "average_mean", "average_variance")
        found |= {f"{name}.{key}": value for key, value in zip(names, means, strict=True)}
    return found


def _walk(features: int, steps: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    mean, log_variance = torch.zeros(features), torch.zeros(features)
    for _ in range(steps):
        mean = mean + 0.1 * (log_variance / 2).exp() * torch.randn(features, generator=generator)
        log_variance = (log_variance + 0.1 * torch.randn(features, generator=generator)).clamp(-3, 3)
        yield mean, log_variance


def _jumps(features: int, steps: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(steps):
        if step % 100 == 0:
            mean, log_variance = torch.randn(2, features, generator=generator)
        yield mean, log_variance


def _stand(features: int, steps: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(steps):
        yield torch.zeros(features), torch.zeros(features)


def _errors(mean: Any, variance: Any, true_mean: Tensor, true_variance: Tensor) -> tuple[Tensor, Tensor]:
    return (
        ((mean - true_mean).square() / true_variance).mean(),
        (variance / true_variance - 1).square().mean(),
    )


class _Fire(torch.autograd.Function):
    """Whether the voltage is above the threshold; backwards a rectangle of height 1 within 0.5 of it."""

    @staticmethod
    def forward(ctx: Any, voltage: Tensor) -> Tensor:
        ctx.save_for_backward(voltage)
        return (voltage > THRESHOLD).to(voltage.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (voltage,) = ctx.saved_tensors
        return gradients[0] * ((voltage - THRESHOLD).abs() < 0.5)


class _Spikes(nn.Module):
    """Leaky integrate-and-fire neurons: u ← 0.75 u (1 − spike) + input, a spike where u > threshold."""

    def forward(self, current: Float[Tensor, "batch step hidden"]) -> Float[Tensor, "batch step hidden"]:
        voltage = spike = torch.zeros_like(current[:, 0])
        spikes = []
        for now in current.unbind(1):
            voltage = 0.75 * voltage * (1 - spike) + now
            spike = _Fire.apply(voltage)
            spikes.append(spike)
        return torch.stack(spikes, dim=1)


class SpikingClassifier(nn.Module):
    """Two layers of spiking neurons after CaRe-BN; logits from the rates of the second."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, hidden_size),
            CaReBN(hidden_size, threshold=THRESHOLD),
            _Spikes(),
            nn.Linear(hidden_size, hidden_size),
            CaReBN(hidden_size, threshold=THRESHOLD),
            _Spikes(),
        )
        self.head = nn.Linear(hidden_size, 10)

    def forward(self, images: Float[Tensor, "batch 8 8"]) -> Float[Tensor, "batch 10"]:
        current = images.flatten(1)[:, None].expand(-1, SPIKE_STEPS, -1)
        return self.head(self.layers(current).mean(1))

    def norms(self) -> list[CaReBN]:
        return [layer for layer in self.layers if isinstance(layer, CaReBN)]


@experiments.register("care-bn-online")
def care_bn_online(
    seed: int,
    *,
    steps: Annotated[int, Field(ge=20)] = 300,
    batch_size: int = 256,
    hidden_size: int = 64,
    lr: float = 1e-3,
    replayed: int = 20,
) -> dict[str, float]:
    """A spiking network that learns online, from a replay buffer into which the digits come class by class.

    The batch normalises in training, so one run serves every estimate of the statistics: CaRe-BN's own (``care``), an
    exponential moving average of 0.1 of the same batches (``average``), and CaRe-BN re-calibrated on ``replayed``
    batches (``recalibrated``). The true ones are those of the whole buffer. Every tenth of the run but the first the
    squared errors (in units of the true deviation, and of the true variance) and the accuracy at inference on test
    images of the classes seen so far are measured, and averaged at the end.
    """
    images, labels, test_images, test_labels = digits(seed)
    arrival = torch.argsort(labels, stable=True)
    images, labels = images[arrival], labels[arrival]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = SpikingClassifier(hidden_size).train()
    averages = [nn.BatchNorm1d(hidden_size, momentum=0.1).train() for _ in model.norms()]
    for norm, average in zip(model.norms(), averages, strict=True):
        norm.register_forward_pre_hook(_follow(average))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    measured: list[dict[str, float]] = []
    for step in range(steps):
        size = batch_size + (len(labels) - batch_size) * step // steps
        index = torch.randint(size, (batch_size,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= steps // 10 and (step + 1) % (steps // 10) == 0:
            seen = test_labels <= labels[size - 1]
            test = test_images[seen], test_labels[seen]
            replay = images[torch.randint(size, (replayed, batch_size), generator=generator)]
            measured.append(_measure(model, averages, images[:size], replay, test))
    return {name: math.fsum(row[name] for row in measured) / len(measured) for name in measured[0]}


def _follow(average: nn.BatchNorm1d) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def hook(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        if norm.training:
            with torch.no_grad():
                average(arguments[0].flatten(0, 1))

    return hook


def _measure(
    model: SpikingClassifier,
    averages: list[nn.BatchNorm1d],
    buffer: Tensor,
    replay: Tensor,
    test: tuple[Tensor, Tensor],
) -> dict[str, float]:
    models = {name: copy.deepcopy(model).eval() for name in ("care", "average", "recalibrated", "true")}
    for norm, average in zip(models["average"].norms(), averages, strict=True):
        norm.load_state_dict({"moving_mean": average.running_mean, "moving_var": average.running_var}, strict=False)
    recalibrate(models["recalibrated"], replay)
    recalibrate(models["true"], [buffer])
    found = {}
    for name, candidate in models.items():
        found[f"{name}_accuracy"] = accuracy(candidate, *test)
        errors = [
            _errors(norm.moving_mean, norm.moving_var, true.moving_mean, true.moving_var)
            for norm, true in zip(candidate.norms(), models["true"].norms(), strict=True)
        ]
        if name != "true":
            means, variances = zip(*errors, strict=True)
            found[f"{name}_mean"] = math.fsum(means) / len(means)
            found[f"{name}_variance"] = math.fsum(variances) / len(variances)
    return found
