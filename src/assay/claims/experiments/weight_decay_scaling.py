"""Rate and decay at three widths: does what is best for the narrowest stay best, and do gains stay the same?

A network of one residual feed-forward block, with a norm before it and one behind, learns to predict the next token
of a random language from the two before, out of so few examples that without decay it learns their chances by heart.
At the tuned values η λ times the steps is 3, so that the matrices forget their start. Each width is trained under muP
with two decays: as the root of the width, and constant. The loss is the excess over the language's own entropy.

Fan, Liu, Zhao, Yuan, Gu, 2025, arXiv:2510.15262.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.analysis.width_transfer import drift, top_singular_values
from assay.claims.experiments import experiments
from assay.optim import Transfer, build_optimizer, optimizers
from assay.optim.transfer.none import NoTransfer
from assay.optim.transfer.weight_decay_scaling import WeightDecayScaling
from assay.slots import Component

TOKENS = 24
RULES = {"root": 0.5, "constant": 0.0}
FACTORS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)


class Language:
    """A sharp random distribution of the next token for each pair before it, and ``examples`` drawn from it."""

    def __init__(self, seed: int, examples: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.table = (2 * torch.randn(TOKENS, TOKENS, TOKENS, generator=self.generator)).softmax(-1)
        self.pairs = torch.randint(TOKENS, (examples, 2), generator=self.generator)
        chances = self.table[self.pairs[:, 0], self.pairs[:, 1]]
        self.targets = torch.multinomial(chances, 1, generator=self.generator)[:, 0]

    def sample(self, count: int) -> tuple[Int[Tensor, "count 2"], Int[Tensor, " count"]]:
        chosen = torch.randint(len(self.targets), (count,), generator=self.generator)
        return self.pairs[chosen], self.targets[chosen]

    def excess(self, networks: Sequence[Network]) -> list[float]:
        """Mean KL from the true distribution to each network's over all pairs, in nats."""
        with torch.no_grad():
            logs = logits(networks, torch.cartesian_prod(torch.arange(TOKENS), torch.arange(TOKENS))).log_softmax(-1)
        return [F.kl_div(each, self.table.flatten(0, 1), reduction="batchmean").item() for each in logs]


class Network(nn.Module):
    """The parameters; ``logits`` runs several networks side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2 * TOKENS, width)
        self.norm, self.final_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.head = nn.Linear(width, TOKENS, bias=False)


def logits(networks: Sequence[Network], pairs: Int[Tensor, "batch 2"]) -> Float[Tensor, "networks batch tokens"]:
    def weights(name: str) -> Tensor:
        return torch.stack([network.get_parameter(f"{name}.weight") for network in networks])

    def normed(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:]) * weights(name)[:, None]

    seen = F.one_hot(pairs + torch.tensor([0, TOKENS]), 2 * TOKENS).sum(1).float()
    x = seen @ weights("embedding")
    x = x + F.relu(normed(x, "norm") @ weights("up").mT) @ weights("down").mT
    return normed(x, "final_norm") @ weights("head").mT


class Setting(NamedTuple):
    transfer: Transfer
    lr: float
    weight_decay: float


@experiments.register("weight-decay-scaling")
def weight_decay_scaling(
    seed: int,
    *,
    widths: tuple[int, ...] = (32, 64, 128),
    examples: int = 2500,
    steps: int = 600,
    batch_size: int = 64,
    lr: float = 0.0025,
    weight_decay: float = 2.0,
    init_std: float = 0.1,
) -> dict[str, float]:
    """For the rules ``root`` and ``constant``:

    ``RULE.lr_shift`` and ``RULE.decay_shift``: by how much the best rate, and the best decay, of the wider networks
    differ from the narrowest one's, in factors of 2, mean over the wider ones. ``RULE.drift``: |ln| of the largest
    singular values of the widest over those of the narrowest at the tuned values. ``exponent``: of the width in the
    largest singular values, with the same rate and decay at both widths.
    """
    base, *wider = widths
    training: dict[str, Any] = {
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "init_std": init_std,
        "examples": examples,
    }

    def grid(transfer: Transfer) -> list[Setting]:
        rates = [Setting(transfer, factor * lr, weight_decay) for factor in FACTORS]
        return rates + [Setting(transfer, lr, factor * weight_decay) for factor in FACTORS]

    def trained(width: int, settings: Sequence[Setting]) -> tuple[list[float], list[Network]]:
        return train(width, settings, **training)

    losses, networks = trained(base, grid(NoTransfer(base)))
    tuned = optimum(losses[: len(FACTORS)]), optimum(losses[len(FACTORS) :])
    middle = FACTORS.index(1.0)
    top = top_singular_values(networks[middle])
    found = {f"{rule}.{shift}": 0.0 for rule in RULES for shift in ("lr_shift", "decay_shift")}
    for width in wider:
        transfers = [WeightDecayScaling(width, width=base, exponent=exponent) for exponent in RULES.values()]
        settings = [setting for transfer in transfers for setting in grid(transfer)]
        losses, networks = trained(width, [*settings, Setting(NoTransfer(width), lr, weight_decay)])
        for number, rule in enumerate(RULES):
            first = 2 * number * len(FACTORS)
            second, third = first + len(FACTORS), first + 2 * len(FACTORS)
            found[f"{rule}.lr_shift"] += abs(optimum(losses[first:second]) - tuned[0]) / len(wider)
            found[f"{rule}.decay_shift"] += abs(optimum(losses[second:third]) - tuned[1]) / len(wider)
            found[f"{rule}.drift"] = abs(drift(top, top_singular_values(networks[first + middle])))
        found["exponent"] = drift(top, top_singular_values(networks[-1])) / math.log(width / base)
    return found


def train(
    width: int,
    settings: Sequence[Setting],
    *,
    seed: int,
    steps: int,
    batch_size: int,
    init_std: float,
    examples: int,
) -> tuple[list[float], list[Network]]:
    """The excess loss of a network for each of the settings, and the networks; all see the same start and batches.

    The rate is constant over four fifths of the steps, then falls linearly to 0.
    """
    language = Language(seed, examples)
    networks: list[Network] = []
    groups: list[tuple[dict[str, Any], float]] = []
    steppers: list[torch.optim.Optimizer] = []
    for setting in settings:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Network(width)
            for weight in (p for p in network.parameters() if p.ndim == 2):
                nn.init.normal_(weight, std=init_std)
        setting.transfer.initialize(network)
        options = {"name": "adamw", "lr": setting.lr, "weight_decay": setting.weight_decay}
        optimizer = build_optimizer(Component.parse(optimizers, options), network, setting.transfer)
        networks.append(network)
        steppers.append(optimizer)
        groups += [(group, group["lr"]) for group in optimizer.param_groups]
    for step in range(steps):
        for group, rate in groups:
            group["lr"] = rate * min(1.0, 5 * (1 - step / steps))
        pairs, targets = language.sample(batch_size)
        rows = logits(networks, pairs).flatten(0, 1)
        loss = F.cross_entropy(rows, targets.repeat(len(networks)), reduction="sum") / batch_size
        loss.backward()
        for optimizer in steppers:
            optimizer.step()
            optimizer.zero_grad()
    return language.excess(networks), networks


def optimum(losses: Sequence[float]) -> float:
    """The log₂ of the factor with the least loss, by the parabola through it and its neighbours; at an end, that end.

    A loss that is not finite counts as a thousand times the least one.
    """
    values = np.array(losses)
    values = np.log(np.where(np.isfinite(values), values, 1e3 * np.nanmin(values)))
    place = int(values.argmin())
    logs = np.log2(FACTORS)
    if place in (0, len(values) - 1):
        return float(logs[place])
    left, least, right = values[place - 1 : place + 2]
    spacing = logs[1] - logs[0]
    return float(logs[place] + spacing * (left - right) / (2 * (left - 2 * least + right)))
