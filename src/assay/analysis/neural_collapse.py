"""Neural collapse: how far a classifier's features are from one point per class, in a simplex, on its weights.

    S_W = mean (h − h̄ₖ)(h − h̄ₖ)ᵀ,  S_B = (1/K) Σₖ (h̄ₖ − h̄)(h̄ₖ − h̄)ᵀ,  M = [h̄₁ − h̄ .. h̄_K − h̄]
    NC1 = tr(S_W S_B⁺) / K,  spread = tr S_W / tr S_B
    NC2 = ‖ MᵀM / ‖MᵀM‖ − (I − 11ᵀ/K) / √(K−1) ‖
    NC3 = ‖ Wᵀ/‖W‖ − M/‖M‖ ‖²,  NC4 = share of h whose class by W h + b is not that of the nearest mean

All are 0 at collapse; norms are Frobenius norms. Classes weigh the same, whatever their sizes.

    min over W, H of ‖W H − Y‖² / 2N + λ_W ‖W‖² / 2K + λ_H ‖H‖² / 2N + β ‖H − H₀‖² / 2N

is a model of a classifier whose last layers can move features H₀ only as far as β lets them: 1/β is what they can do.
Tirer, Huang, Niles-Weed, 2022, arXiv:2210.16658. NC3 and NC4 are those of Papyan, Han, Donoho, 2020,
arXiv:2008.08186.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError

RTOL = 1e-10
"""Singular values of S_B below this share of the largest count as 0."""

Features = Float[Tensor, "count hidden"]
Labels = Int[Tensor, " count"]


@dataclass(frozen=True)
class Collapse:
    """Distances from collapse; ``nc3`` and ``nc4`` are None without a classifier.

    ``spread`` is the variation within classes over that between them, which needs no inverse.
    """

    nc1: float
    spread: float
    nc2: float
    nc3: float | None
    nc4: float | None


@torch.no_grad()
def neural_collapse(
    features: Features,
    labels: Labels,
    weight: Float[Tensor, "classes hidden"] | None = None,
    bias: Float[Tensor, " classes"] | None = None,
) -> Collapse:
    """How far ``features`` are from collapse, in float64.

    Args:
        features: what the classifier reads, of training data as a rule, one row each.
        labels: the classes 0 .. K − 1 of the rows, each there at least once.
        weight: of the classifier, one row per class.
        bias: of the classifier; none is 0.

    Raises ``UserError`` if shapes do not fit, a class has no row, a number is not finite or all class means coincide.
    """
    means, count = class_means(features, labels)
    h, labels = features.double(), labels.long()
    if weight is not None and weight.shape != means.shape:
        raise UserError(f"the classifier's weight is {tuple(weight.shape)}; these features need {tuple(means.shape)}")
    if bias is not None and bias.shape != (count,):
        raise UserError(f"the classifier's bias is {tuple(bias.shape)}; these labels need {(count,)}")
    if not all(tensor is None or torch.isfinite(tensor).all() for tensor in (weight, bias)):
        raise UserError("the classifier has numbers that are not finite")
    m = (means - means.mean(0)).T
    between = m @ m.T / count
    if not between.trace() > 0:
        raise UserError("all classes have the same mean feature, so there is nothing between classes to compare with")
    share = 1 / (torch.bincount(labels, minlength=count)[labels].double() * count)
    inside = h - means[labels]
    within = (inside * share[:, None]).T @ inside
    gram = m.T @ m
    simplex = (torch.eye(count, dtype=torch.float64) - 1 / count) / (count - 1) ** 0.5
    return Collapse(
        nc1=(torch.linalg.pinv(between, rtol=RTOL, hermitian=True) * within).sum().item() / count,
        spread=(within.trace() / between.trace()).item(),
        nc2=(gram / gram.norm() - simplex).norm().item(),
        nc3=None if weight is None else _self_duality(weight.double(), m),
        nc4=None if weight is None else _mismatch(h, means, labels, weight.double(), bias),
    )


def class_means(features: Features, labels: Labels) -> tuple[Float[Tensor, "classes hidden"], int]:
    """The mean feature of each class in float64, and how many classes there are.

    Raises ``UserError`` as ``neural_collapse`` does.
    """
    if features.ndim != 2 or labels.ndim != 1 or len(features) != len(labels):
        shapes = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise UserError(f"features and labels are {shapes}; they are a row per example and a class per row")
    if not torch.isfinite(features).all():
        raise UserError("the features have numbers that are not finite")
    if labels.is_floating_point() or labels.dtype == torch.bool or not len(labels) or labels.min() < 0:
        raise UserError("labels are whole numbers from 0")
    sizes = torch.bincount(labels.long())
    if len(sizes) < 2 or not sizes.all():
        missing = 1 if len(sizes) < 2 else int((sizes == 0).nonzero()[0])
        raise UserError(f"class {missing} has no example; classes are 0 to K − 1, at least 2, and each needs one")
    sums = torch.zeros(len(sizes), features.shape[1], dtype=torch.float64)
    return sums.index_add(0, labels.long(), features.double()) / sizes[:, None], len(sizes)


def _self_duality(weight: Float[Tensor, "classes hidden"], m: Float[Tensor, "hidden classes"]) -> float:
    if not weight.norm() > 0:
        raise UserError("the classifier's weight is 0, so it has no direction to compare with")
    return (weight.T / weight.norm() - m / m.norm()).square().sum().item()


def _mismatch(
    h: Features,
    means: Float[Tensor, "classes hidden"],
    labels: Labels,
    weight: Float[Tensor, "classes hidden"],
    bias: Float[Tensor, " classes"] | None,
) -> float:
    predicted = F.linear(h, weight, None if bias is None else bias.double()).argmax(-1)
    return (predicted != torch.cdist(h, means).argmin(-1)).double().mean().item()


@torch.no_grad()
def classifier_inputs(model: nn.Module, classifier: nn.Module, inputs: Tensor) -> Features:
    """What the module ``classifier`` of ``model`` reads when ``model`` sees ``inputs``, in evaluation mode.

    Raises ``UserError`` if the model does not call it exactly once.
    """
    found: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda module, arguments: found.append(arguments[0].flatten(1)))
    training = model.training
    try:
        model.eval()(inputs)
    finally:
        handle.remove()
        model.train(training)
    if len(found) != 1:
        raise UserError(f"{type(model).__name__} calls the classifier {len(found)} times; once is what is needed")
    return found[0]


def nearby_features(
    start: Features, labels: Labels, *, beta: float, weight_penalty: float, feature_penalty: float
) -> Features:
    """H of the model above: features near ``start`` = H₀ that a linear classifier fits best, in float64.

    W is eliminated: W(H) = Y Hᵀ (H Hᵀ + n λ_W I)⁻¹ with n = N / K, and H found by L-BFGS.

    Args:
        beta: β, the price of leaving ``start``, above 0.
        weight_penalty: λ_W, above 0.
        feature_penalty: λ_H, 0 or more.

    Raises ``UserError`` for numbers outside of these ranges, classes of unequal sizes, and as ``neural_collapse``.
    """
    if not (beta > 0 and weight_penalty > 0 and feature_penalty >= 0):
        given = f"β = {beta}, λ_W = {weight_penalty}, λ_H = {feature_penalty}"
        raise UserError(f"{given}; the first two are above 0 and the last is not below")
    _, classes = class_means(start, labels)
    labels = labels.long()
    if len(set(torch.bincount(labels).tolist())) > 1:
        raise UserError("the classes have unequal numbers of examples; this model is of balanced ones")
    count, hidden = start.shape
    target = F.one_hot(labels, classes).double()
    origin = start.detach().double()
    h = origin.clone().requires_grad_()
    identity = torch.eye(hidden, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        [h], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        gram = h.T @ h + (count / classes) * weight_penalty * identity
        weight = torch.linalg.solve(gram, h.T @ target).T
        value = (
            (h @ weight.T - target).square().sum()
            + (count / classes) * weight_penalty * weight.square().sum()
            + feature_penalty * h.square().sum()
            + beta * (h - origin).square().sum()
        ) / (2 * max(1.0, beta))
        value.backward()
        return value

    optimizer.step(objective)
    return h.detach()
