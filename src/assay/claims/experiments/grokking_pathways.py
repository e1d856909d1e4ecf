"""Addition modulo a prime by a small mixture of experts: pathways while it memorizes, and while it generalises.

Four fifths of all pairs are for training, from a small start and with strong weight decay, until long after they are
known by heart; in the last fifth of the steps the learning rate falls linearly to 0. A second run has random answers,
which can be memorized but never generalised.

Grokking: Power et al., 2022, arXiv:2201.02177; pathways: Li, Fan, Zhou, 2025, arXiv:2506.21551.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assay.analysis.grokking_pathways import pathways, routing
from assay.claims.experiments import experiments


class Experts(nn.Module):
    """x + Σ over the ``chosen`` experts of largest weight g_k MLP_k(norm(x)), g = softmax(router)."""

    def __init__(self, hidden_size: int, experts: int, width: int, chosen: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size)
        self.router = nn.Linear(hidden_size, experts, bias=False)
        self.experts_up = nn.Parameter(torch.randn(experts, hidden_size, width) / math.sqrt(hidden_size))
        self.experts_down = nn.Parameter(torch.randn(experts, width, hidden_size) / math.sqrt(width))
        self.chosen = chosen

    def forward(self, x: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch hidden"]:
        z = self.norm(x)
        weights = self.router(z).softmax(-1)
        lowest = weights.topk(self.chosen, dim=-1).values[:, -1:]
        weights = torch.where(weights >= lowest, weights, 0.0)
        return x + ((z @ self.experts_up).relu() @ self.experts_down * weights.T[..., None]).sum(0)


class MoEAdder(nn.Module):
    """Embeddings of two numbers, each in a table of its own, summed; layers of experts; a head over the sums."""

    def __init__(self, modulus: int, *, depth: int, hidden_size: int, experts: int, width: int, chosen: int) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(modulus, hidden_size), nn.Embedding(modulus, hidden_size)
        self.layers = nn.ModuleList(Experts(hidden_size, experts, width, chosen) for _ in range(depth))
        self.head = nn.Linear(hidden_size, modulus, bias=False)

    def forward(self, numbers: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch modulus"]:
        x = self.first(numbers[:, 0]) + self.second(numbers[:, 1])
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@experiments.register("grokking-pathways")
def grokking_pathways(
    seed: int,
    *,
    modulus: int = 31,
    steps: int = 1500,
    every: int = 50,
    depth: int = 3,
    hidden_size: int = 64,
    experts: int = 8,
    width: int = 48,
    chosen: int = 2,
    lr: float = 5e-3,
    weight_decay: float = 2.0,
    start: float = 0.03,
    samples: int = 64,
) -> dict[str, float]:
    """``TASK.fall``: share of the pathways' distance that is lost between memorizing and the end.

    Memorized is the first look, every ``every`` steps, with 99 % of the training answers right, or else the last one.
    ``TASK.test`` is the accuracy on pairs that training had not, at the end. ``distance.r`` and ``complexity.r`` are
    the correlations over the looks from then on of both metrics, on training pairs, with that accuracy: of ``true``
    answers.
    """
    found: dict[str, float] = {}
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pairs), generator=generator)
    training, test = order.tensor_split([4 * len(pairs) // 5])
    for task in ("true", "random"):
        answers = pairs.sum(1) % modulus
        if task == "random":
            answers = answers[torch.randperm(len(answers), generator=generator)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MoEAdder(
                modulus, depth=depth, hidden_size=hidden_size, experts=experts, width=width, chosen=chosen
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(("first", "second", "head")) or name.endswith("experts_down"):
                    parameter.mul_(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.98), weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(5 - 5 * step / steps, 1.0))
        looks: list[tuple[float, float, float, float]] = []
        routers = {str(number): layer.get_submodule("router") for number, layer in enumerate(model.layers)}
        for step in range(steps + 1):
            if step % every == 0:
                routes = routing(model, pairs[training[:samples], None], routers=routers)
                seen = pathways(routes)
                right, elsewhere = (_accuracy(model, pairs[part], answers[part]) for part in (training, test))
                looks.append((right, elsewhere, seen.distance, seen.complexity))
            optimizer.zero_grad()
            F.cross_entropy(model(pairs[training]), answers[training]).backward()
            optimizer.step()
            schedule.step()
        known, unknown, distances, complexities = np.array(looks).T
        memorized = int(np.argmax(known >= 0.99)) if (known >= 0.99).any() else len(looks) - 1
        found |= {
            f"{task}.train": float(known[-1]),
            f"{task}.test": float(unknown[-1]),
            f"{task}.memorized": float(memorized * every),
            f"{task}.fall": float(1 - distances[-1] / distances[memorized]),
        }
        if task == "true":
            found |= {
                "distance.r": _correlation(distances[memorized:], unknown[memorized:]),
                "complexity.r": _correlation(complexities[memorized:], unknown[memorized:]),
            }
    return found


@torch.no_grad()
def _accuracy(model: MoEAdder, numbers: Tensor, answers: Tensor) -> float:
    return (model(numbers).argmax(-1) == answers).double().mean().item()


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; NaN for fewer than 3 looks, or one that does not vary."""
    if len(a) < 3 or any(not np.isfinite(x).all() or np.ptp(x) == 0 for x in (a, b)):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
