"""Federated adversarial learning: whether clients fit their attacked data together, and what it makes of digits.

``federated-fit`` is the setting of the theory: a wide ReLU layer with a fixed output layer, inputs of unit norm, and
clients that have one label each; every input has a partner of the other label at a given distance.
``federated-digits`` has clients with different mixtures of classes. Li, Song, Yang, 2022, arXiv:2208.03635.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from assay.claims.digits import accuracy, digits
from assay.claims.experiments import experiments
from assay.optim.federated import PGD, Client, FederatedAdversarial, dirichlet_split

DISTANCES = {"apart": 0.6, "near": 0.3, "overlapping": 0.08}
RATES = (0.2, 0.5)


class WideReLU(nn.Module):
    """Σ_r a_r relu(⟨U_r, x⟩ + b_r) / √m, of which U is trained; a_r is 1 or −1."""

    signs: Tensor

    def __init__(self, features: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Linear(features, width)
        with torch.no_grad():
            for parameter in self.inner.parameters():
                parameter.normal_(generator=generator)
        self.inner.bias.requires_grad_(False)
        self.register_buffer("signs", torch.randint(2, (width,), generator=generator) * 2.0 - 1)

    def forward(self, x: Float[Tensor, "n features"]) -> Float[Tensor, " n"]:
        return self.inner(x).relu() @ self.signs / math.sqrt(len(self.signs))


@experiments.register("federated-fit")
def federated_fit(
    seed: int, *, width: int = 1000, pairs: int = 12, features: int = 8, radius: float = 0.05, rounds: int = 150
) -> dict[str, float]:
    """By distance of the partners (``DISTANCES``): the robust squared loss before training, ``start``, and the
    smallest over the rounds, ``best``. Balls of ``radius`` around partners that are ``overlapping`` do so.
    """
    protocol = FederatedAdversarial(
        PGD(radius, radius / 2, steps=3, norm="l2", random_start=False),
        local_steps=4,
        local_lr=0.2,
        global_lr=4.0,
        loss=F.mse_loss,
        seed=seed,
    )
    found: dict[str, float] = {}
    for name, distance in DISTANCES.items():
        generator = torch.Generator().manual_seed(seed)
        model = WideReLU(features, width, generator)
        clients = opposites(pairs, features, distance, generator)
        losses = [protocol.round(model, clients, number) for number in range(rounds)]
        found |= {f"{name}.start": losses[0], f"{name}.best": min(losses)}
    return found


def opposites(pairs: int, features: int, distance: float, generator: torch.Generator) -> list[Client]:
    """Four clients with unit inputs: two with random ones of label 1, two with their partners of label −1."""
    x, away = torch.randn(2, pairs, features, generator=generator)
    x = F.normalize(x, dim=1)
    away = F.normalize(away - (away * x).sum(1, keepdim=True) * x, dim=1)
    angle = 2 * math.asin(distance / 2)
    partners = math.cos(angle) * x + math.sin(angle) * away
    return [
        (part, torch.full((len(part),), label))
        for inputs, label in ((x, 1.0), (partners, -1.0))
        for part in inputs.chunk(2)
    ]


@experiments.register("federated-digits")
def federated_digits(
    seed: int,
    *,
    clients: int = 10,
    concentration: float = 0.3,
    radius: float = 0.3,
    rounds: int = 40,
    hidden_size: int = 64,
) -> dict[str, float]:
    """``ARM.clean``, ``ARM.robust``: accuracy on test images, as they are and under a stronger attack.

    Arms: ``adversarial``, federated adversarial learning on a Dirichlet split; ``averaged``, federated averaging on
    the same split; ``central``, adversarial training on all data at once. All take as many local steps from the same
    weights, at the rate of ``RATES`` that is most robust on training images. ``radius`` is in deviations of a pixel.
    """
    images, labels, test_images, test_labels = digits(seed)
    bounds = images.min().item(), images.max().item()
    shares = dirichlet_split(labels, clients, concentration=concentration, seed=seed)
    split: list[Client] = [(images[share], labels[share]) for share in shares]
    attack = PGD(radius, radius / 3, steps=5, bounds=bounds)
    strong = PGD(radius, radius / 6, steps=20, bounds=bounds)
    arms = {"adversarial": (attack, split), "averaged": (None, split), "central": (attack, [(images, labels)])}
    count = len(test_labels)
    found: dict[str, float] = {}
    for name, (inner, data) in arms.items():
        trained: dict[float, nn.Module] = {}
        for rate in RATES:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 10))
            protocol = FederatedAdversarial(inner, local_lr=rate, seed=seed)
            for number in range(rounds):
                protocol.round(model, data, number)
            trained[_robust(model, images[:count], labels[:count], strong, seed)] = model
        best = trained[max(trained)]
        found |= {
            f"{name}.clean": accuracy(best, test_images, test_labels),
            f"{name}.robust": _robust(best, test_images, test_labels, strong, seed),
        }
    return found


def _robust(model: nn.Module, images: Tensor, labels: Tensor, attack: PGD, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    return accuracy(model, attack(model, images, labels, generator=generator), labels)
