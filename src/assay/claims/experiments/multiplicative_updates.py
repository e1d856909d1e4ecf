"""Multiplicative updates: of weights, by exponentiated gradients, and of samples, by the Dale-Langevin sampler."""

from __future__ import annotations

import copy
import math
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from assay.claims.digits import accuracy, batches, digits
from assay.claims.experiments import experiments
from assay.models.dale_langevin import MultiplicativeDiffusion, Sampler, log_normal_like
from assay.optim.exponentiated_gradient import ExponentiatedGradient

SHIFT = 5.0


@experiments.register("exponentiated-gradient-digits")
def exponentiated_gradient_digits(
    seed: int, *, steps: int = 600, batch_size: int = 64, hidden_size: int = 128, lr: float = 0.003
) -> dict[str, float]:
    """A classifier of digits trained by exponentiated gradients (``eg``) and by ``adam``, from one normal start.

    ``flipped`` is the share of weights that end with the other sign, ``distance`` that of the distribution of log |w|
    from the normal one with its mean and deviation (Kolmogorov-Smirnov, averaged over the matrices), and ``accuracy``
    is on test images. ``start.distance`` is that of the starting weights. Both arms use Adam's update at the constant
    rate ``lr`` without decay, exponentiated gradients with their scale of 10.
    """
    images, labels, test_images, test_labels = digits(seed)
    torch.manual_seed(seed)
    start = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, hidden_size),
        nn.ReLU(),
        nn.Linear(hidden_size, hidden_size),
        nn.ReLU(),
        nn.Linear(hidden_size, 10),
    )
    for matrix in matrices(start):
        nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)
    found = {"start.distance": log_normal_distance(start)}
    for name in ("eg", "adam"):
        model = copy.deepcopy(start)
        optimizer = (
            ExponentiatedGradient(model.parameters(), lr, weight_decay=0.0)
            if name == "eg"
            else torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.95))
        )
        for index in batches(len(labels), steps=steps, batch_size=batch_size, seed=seed):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
        pairs = zip(matrices(start), matrices(model), strict=True)
        flipped = torch.cat([(a.sign() * b.sign() < 0).flatten() for a, b in pairs])
        found[f"{name}.flipped"] = flipped.double().mean().item()
        found[f"{name}.distance"] = log_normal_distance(model)
        found[f"{name}.accuracy"] = accuracy(model, test_images, test_labels)
    return found


def matrices(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters() if parameter.ndim == 2]


def log_normal_distance(model: nn.Module) -> float:
    """Largest difference of the distribution of log |w| from the normal one, a mean over the matrices."""
    distances = []
    for matrix in matrices(model):
        logs = matrix.double().abs().clamp(min=1e-300).log().flatten().sort().values
        shares = (torch.arange(len(logs)) + 0.5) / len(logs)
        distances.append((torch.special.ndtr((logs - logs.mean()) / logs.std()) - shares).abs().max().item())
    return math.fsum(distances) / len(distances)


class _Noise(nn.Module):
    """The noise in x_t from log x_t and t; the score follows from it."""

    def __init__(self, diffusion: MultiplicativeDiffusion, hidden_size: int) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.layers = nn.Sequential(
            nn.Linear(4, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, 2),
        )

    def forward(self, x: Float[Tensor, "batch 2"], t: Float[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
        root = t[:, None].sqrt()
        inputs = torch.cat([x.clamp(min=1e-6).log() - math.log(SHIFT), root, root.log()], dim=1)
        return (-1 - self.layers(inputs) / (self.diffusion.sigma * root)) / x


@experiments.register("dale-langevin-spirals")
def dale_langevin_spirals(
    seed: int,
    *,
    steps: int = 4000,
    batch_size: int = 256,
    hidden_size: int = 64,
    lr: float = 2e-3,
    sampling_steps: int = 50,
    samples: int = 2000,
) -> dict[str, float]:
    """Two samplers of one network, which has learnt the score of two spirals around (5, 5) by M-DSM.

    ``dale-langevin`` and ``unconstrained`` are the energy distances of their samples from fresh data, ``start`` that
    of the log-normal numbers that both start from. ``SAMPLER.outside`` is the share of samples that are not positive
    after as few as 5 steps. The rate falls linearly to 0; both samplers see the same noise.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    diffusion = MultiplicativeDiffusion()
    score = _Noise(diffusion, hidden_size)
    optimizer = torch.optim.Adam(score.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        x0, t = spirals(batch_size, generator), torch.rand(batch_size, generator=generator).clamp(min=1e-3)
        optimizer.zero_grad()
        diffusion.loss(score, x0, t, torch.randn(x0.shape, generator=generator)).backward()
        optimizer.step()
        schedule.step()
    data = spirals(samples, generator)
    noised = diffusion.noised(data, torch.ones(samples), torch.randn(data.shape, generator=generator))
    start = log_normal_like(noised, samples, generator)
    fresh = spirals(samples, generator)
    found = {"start": energy_distance(start, fresh)}
    for sampler in get_args(Sampler):
        ends = {
            number: diffusion.sample(
                score, start, steps=number, sampler=sampler, generator=torch.Generator().manual_seed(seed)
            )
            for number in (sampling_steps, 5)
        }
        found[sampler] = energy_distance(ends[sampling_steps], fresh)
        found[f"{sampler}.outside"] = (~(ends[5] > 0)).any(1).double().mean().item()
    return found


def spirals(count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
    """Points on two arms of one and a half turns, as far as 3 from (5, 5), with a little noise."""
    radius = 3 * torch.rand(count, generator=generator).sqrt()
    angle = math.pi * radius + math.pi * torch.randint(2, (count,), generator=generator)
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return SHIFT + points + 0.05 * torch.randn(count, 2, generator=generator)


def energy_distance(x: Float[Tensor, "n features"], y: Float[Tensor, "m features"]) -> float:
    """2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖: 0 for samples of one law, up to chance."""
    between, of_x, of_y = (torch.cdist(a, b).mean().item() for a, b in ((x, y), (x, x), (y, y)))
    return 2 * between - of_x - of_y
