"""CPC: which labels are wrong, judged by one prototype per class in feature space.

    wᵢ = posterior of the mixture component of the smaller mean, two Gaussians fitted to all min-max scaled losses
    s_ik = σ(zᵢ · c_k + b_k),  z = features, standardised and of mean square norm 1 a feature
    targets: wᵢ > hi: 1 for k = yᵢ and 0 for all others;  wᵢ < lo: 0 for k = yᵢ alone;  the rest has none
    L = Σ_k ½ (mean BCE of class k's positives + mean BCE of its negatives)
    pᵢ = s_{i, yᵢ},  clean if pᵢ > ½

A prototype is a binary classifier of its class, so that clean and wrong labels part at a threshold of the class's
own, where the mixture has one for all. The mixture is that of DivideMix (Li, Socher, Hoi, 2020, arXiv:2002.07394).
Targets, loss and the use of pᵢ are a reconstruction from the paper's abstract; its text and code were not at hand.

Huang, Chen, Feng, Wu, 2022, arXiv:2212.10766.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from assay.errors import UserError

ITERATIONS, TOLERANCE, VARIANCE = 200, 1e-6, 5e-4
"""Of the mixture: the most steps of EM, the gain in mean log-likelihood that ends them, what variances get."""

Features = Float[Tensor, "count hidden"]
Labels = Int[Tensor, " count"]
Values = Float[Tensor, " count"]


@dataclass(frozen=True)
class Cleaned:
    """``posterior`` is the mixture's wᵢ and ``probability`` the prototypes' pᵢ that the label of a row is right."""

    posterior: Values
    probability: Values

    @property
    def clean(self) -> Bool[Tensor, " count"]:
        """By the prototypes."""
        return self.probability > 0.5


def clean_labels(
    features: Features,
    labels: Labels,
    losses: Values,
    *,
    high: float = 0.8,
    low: float = 0.2,
    ridge: float = 1e-3,
    balanced: bool = True,
) -> Cleaned:
    """The probability of each label to be right, from a network that was trained on them for a few epochs.

    Args:
        features: what the network's classifier reads, in evaluation mode, one row each.
        labels: the given classes 0 .. K − 1.
        losses: the cross-entropy of each row with its given label, in nats.
        high: rows with a posterior above it are positive for their class.
        low: rows with one below it are negative for their class.
        ridge: λ of the penalty λ/2 ‖C‖² on the prototypes, above 0.
        balanced: weigh a class's positives and negatives alike; else all its targets.

    Raises ``UserError`` for shapes that do not fit, numbers that are not finite, thresholds outside of
    0 ≤ low ≤ high ≤ 1, or losses that are all the same.
    """
    if not 0 <= low <= high <= 1 or not ridge > 0:
        raise UserError(f"low={low}, high={high}, ridge={ridge}; they are 0 ≤ low ≤ high ≤ 1 and ridge above 0")
    _check(features, labels, losses)
    posterior = clean_posterior(losses)
    z = features.double() - features.double().mean(0)
    z = z / z.square().sum(-1).mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny) * math.sqrt(z.shape[1])
    targets, weights = supervision(labels, posterior, high=high, low=low, balanced=balanced)
    prototypes, bias = fit_prototypes(z, targets, weights, ridge=ridge)
    scores = torch.sigmoid(z @ prototypes.T + bias)
    return Cleaned(posterior, scores[torch.arange(len(labels)), labels.long()])


def clean_posterior(losses: Values) -> Values:
    """wᵢ: how probably a loss is of the mixture's component with the smaller mean, in float64.

    Losses are scaled to 0 .. 1; EM starts at the two ends. Raises ``UserError`` if all losses are the same.
    """
    x = losses.double()
    span = x.max() - x.min()
    if not span > 0:
        raise UserError("all losses are the same, so there is nothing to tell clean labels by")
    x = (x - x.min()) / span
    mean = torch.tensor([0.0, 1.0], dtype=torch.float64)
    variance = x.var(correction=0).expand(2) + VARIANCE
    share = torch.full((2,), 0.5, dtype=torch.float64)
    before = -math.inf
    for _ in range(ITERATIONS):
        logs = share.log() - 0.5 * ((x[:, None] - mean).square() / variance + (2 * math.pi * variance).log())
        likelihood = logs.logsumexp(-1)
        each = (logs - likelihood[:, None]).exp()
        now = likelihood.mean().item()
        if now - before < TOLERANCE:
            break
        before = now
        mass = each.sum(0) + 10 * torch.finfo(torch.float64).eps
        share, mean = mass / mass.sum(), each.T @ x / mass
        variance = (each * (x[:, None] - mean).square()).sum(0) / mass + VARIANCE
    return each[:, mean.argmin()]


def supervision(
    labels: Labels, posterior: Values, *, high: float = 0.8, low: float = 0.2, balanced: bool = True
) -> tuple[Float[Tensor, "count classes"], Float[Tensor, "count classes"]]:
    """What the prototypes should say of each row, and how much each of these counts: 0 where there is no target.

    The weights of a class sum to 1, those of its positives to ½ if ``balanced`` and there are both kinds.
    """
    given = F.one_hot(labels.long()).bool()
    positive = given & (posterior > high)[:, None]
    negative = (~given & (posterior > high)[:, None]) | (given & (posterior < low)[:, None])
    weights = torch.zeros(given.shape, dtype=torch.float64)
    for one in (positive, negative):
        counted = one.sum(0) if balanced else (positive | negative).sum(0)
        weights += one / counted.clamp(min=1)
    return positive.double(), weights / weights.sum(0).clamp(min=1)


def prototype_loss(
    z: Features,
    prototypes: Float[Tensor, "classes hidden"],
    bias: Float[Tensor, " classes"],
    targets: Float[Tensor, "count classes"],
    weights: Float[Tensor, "count classes"],
) -> Float[Tensor, ""]:
    """The sum over classes of the weighted binary cross-entropy."""
    return F.binary_cross_entropy_with_logits(z @ prototypes.T + bias, targets, weights, reduction="sum")


def fit_prototypes(
    z: Features,
    targets: Float[Tensor, "count classes"],
    weights: Float[Tensor, "count classes"],
    *,
    ridge: float = 1e-3,
) -> tuple[Float[Tensor, "classes hidden"], Float[Tensor, " classes"]]:
    """The prototypes and biases of least loss, with a ridge on the prototypes, by L-BFGS in float64 from zero."""
    prototypes = torch.zeros(targets.shape[1], z.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [prototypes, bias], max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = prototype_loss(z.double(), prototypes, bias, targets, weights)
        value = value + ridge / 2 * prototypes.square().sum()
        value.backward()
        return value

    optimizer.step(objective)
    return prototypes.detach(), bias.detach()


def _check(features: Features, labels: Labels, losses: Values) -> None:
    shapes = [tuple(one.shape) for one in (features, labels, losses)]
    if [len(shape) for shape in shapes] != [2, 1, 1] or len({shape[0] for shape in shapes}) > 1:
        raise UserError(f"features, labels and losses are {shapes}; they are a row, a class and a loss per example")
    if not (torch.isfinite(features).all() and torch.isfinite(losses).all()):
        raise UserError("features or losses have numbers that are not finite")
    if labels.is_floating_point() or labels.dtype == torch.bool or not len(labels) or labels.min() < 0:
        raise UserError("labels are whole numbers from 0")
    if labels.max() < 1:
        raise UserError("labels are all of class 0; there are at least 2 classes")
