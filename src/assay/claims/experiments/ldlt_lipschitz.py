"""Networks with a certified Lipschitz constant, on the digits.

``ldlt-tightness`` trains one LDLT block and compares what it certifies with the product of its maps' norms, and with
the largest slope that an adversary finds. ``ldlt-digits`` trains LDLT blocks and SLL layers,

    x − 2 W T⁻¹ relu(Wᵀx + b),    T = diag(Σ_j |WᵀW|_ij q_j / q_i),    q = exp(free)

(Araujo et al., 2023, arXiv:2303.03169) with equally many parameters, each below one linear map of norm at most 1.
An image's class is certified within ε if its logit is ahead of all others by more than √2 ε.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assay.claims.digits import digits, train_classifier
from assay.claims.experiments import experiments
from assay.nn.mlp.ldlt_lipschitz import SMALLEST, LDLTBlock, contraction

TEMPERATURE = 0.25
"""Logits are divided by it in the loss, so that networks that cannot stretch distances can be sure of a class."""


class SLLLayer(nn.Module):
    """A residual layer of norm at most 1 with ``width`` hidden units."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(features, width)
        self.log_q = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        q, w = self.log_q.exp(), self.inner.weight
        t = ((w @ w.mT).abs() * q / q[:, None]).sum(1)
        return x - 2 * (self.inner(x).relu() / t) @ w


class Contraction(nn.Linear):
    """x ↦ K(V) x + b."""

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        weight, _ = contraction(self.weight, torch.tensor(1 + SMALLEST))
        return F.linear(x, weight, self.bias)


def trained(model: nn.Module, images: Tensor, labels: Tensor, *, lr: float, steps: int, seed: int) -> nn.Module:
    class Sharpened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) / TEMPERATURE

    train_classifier(Sharpened(), images, labels, steps=steps, batch_size=128, lr=lr, seed=seed, weight_decay=0)
    return model.eval()


def slopes(model: nn.Module, x: Tensor, other: Tensor) -> Float[Tensor, " pairs"]:
    return (model(x) - model(other)).norm(dim=-1) / (x - other).norm(dim=-1)


@experiments.register("ldlt-tightness")
def ldlt_tightness(
    seed: int, *, steps: int = 300, lr: float = 1e-2, width: int = 64, climbs: int = 200
) -> dict[str, float]:
    """``certified``: the block's constant; ``product``: ‖A‖ + ‖B‖ ‖C_2‖ ‖C_1‖; ``attained``: the largest slope that
    ``climbs`` of gradient ascent find from images; ``violations``: pairs above the constant, these and random ones.
    """
    images, labels, test_images, _ = digits(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = LDLTBlock(64, 10, (width, width))
        trained(block, images.flatten(1), labels, lr=lr, steps=steps, seed=seed)
        block = block.double()
        steps_away = 10 ** torch.empty(450, 1, dtype=torch.float64).uniform_(-4, 1)
        x = test_images.flatten(1).double()
        other = x + steps_away * torch.randn_like(x)
    with torch.no_grad():
        skip, (first, second), outer = block.maps()
        norm = torch.linalg.matrix_norm
        product = norm(skip, 2) + norm(outer, 2) * norm(second, 2) * norm(first, 2)
    found = [slopes(block, x, other)]
    x, other = x.requires_grad_(), other.requires_grad_()
    adversary = torch.optim.Adam([x, other], lr=0.1)
    for _ in range(climbs):
        adversary.zero_grad()
        (-slopes(block, x, other).log().sum()).backward()
        adversary.step()
    found.append(slopes(block, x, other))
    reached = torch.cat(found).detach()
    return {
        "certified": block.lipschitz,
        "product": product.item(),
        "attained": reached.max().item(),
        "violations": float((reached > block.lipschitz * (1 + 1e-9)).sum()),
    }


@experiments.register("ldlt-digits")
def ldlt_digits(
    seed: int, *, steps: int = 300, lrs: tuple[float, ...] = (3e-3, 1e-2, 3e-2), epsilon: float = 0.5
) -> dict[str, float]:
    """``ARM.accuracy`` and ``ARM.certified``, the share of test images that are classified rightly, and so at any
    distance up to ``epsilon``, in deviations of a pixel.

    Each arm has the learning rate that did best, by the sum of the two, on a fifth of the training set.
    """
    images, labels, test_images, test_labels = digits(seed)
    images, test_images = images.flatten(1), test_images.flatten(1)
    kept = len(images) * 4 // 5

    def fresh(arm: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if arm == "ldlt":
                return nn.Sequential(LDLTBlock(64, 64, (64, 64)), LDLTBlock(64, 64, (64, 64)), Contraction(64, 10))
            return nn.Sequential(*(SLLLayer(64, 64) for _ in range(8)), Contraction(64, 10))

    def chosen(arm: str) -> float:
        scores = {}
        for lr in lrs:
            model = trained(fresh(arm), images[:kept], labels[:kept], lr=lr, steps=steps // 2, seed=seed)
            scores[lr] = sum(measured(model, images[kept:], labels[kept:], epsilon))
        return max(scores, key=lambda lr: scores[lr])

    found: dict[str, float] = {}
    for arm in ("ldlt", "sll"):
        model = trained(fresh(arm), images, labels, lr=chosen(arm), steps=steps, seed=seed)
        accuracy, certified = measured(model, test_images, test_labels, epsilon)
        found |= {f"{arm}.accuracy": accuracy, f"{arm}.certified": certified}
    return found


@torch.no_grad()
def measured(model: nn.Module, images: Tensor, labels: Int[Tensor, " count"], epsilon: float) -> tuple[float, float]:
    """The shares that are right, and right with a lead that ``epsilon`` cannot close."""
    logits = model(images)
    right = logits.gather(1, labels[:, None]).squeeze(1)
    lead = right - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return (lead > 0).double().mean().item(), (lead > math.sqrt(2) * epsilon).double().mean().item()
