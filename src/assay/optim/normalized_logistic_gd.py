"""Normalized LR+GD: the logistic gradient divided by the mean misfit weight.

    m_i = y_i aᵢᵀθ,   w_i = 1 / (1 + exp(m_i)),   θ ← θ + η Σ_i s_i y_i a_i,   s_i = w_i / Σ_j w_j

Gradient descent on the logistic loss takes w_i / n in place of s_i. On separable data and for large steps the first
becomes the normalised batch perceptron, s_i = 1 / |S| for the samples S that are on the wrong side, and needs
R²/μ² + 2 log(2n − 1) / (η μ²) steps at most (R: the longest sample, μ: the largest margin); gradient descent becomes
the batch perceptron, which can need n times R²/μ².

The normaliser is over the whole data set, so mini-batches are another method. The loss does not say how near the
separator is: it may rise on the way.

Tyurin, 2024, arXiv:2412.08424.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import ParamsT

from assay.errors import UserError
from assay.optim.base import Optimizer

Method = Literal[
    "normalized-logistic-gd", "logistic-gd", "normalized-batch-perceptron", "batch-perceptron", "perceptron"
]


def normalized_misfit(margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """s_i: positive, of sum 1, and exact where all w_i underflow."""
    return F.logsigmoid(-margins).softmax(0)


def class_margins(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The label's logit less the log-sum-exp of the others, so that log(1 + exp(−m)) is the cross-entropy."""
    chosen = F.one_hot(labels, logits.shape[-1]).bool()
    return logits[chosen] - logits.masked_fill(chosen, -math.inf).logsumexp(-1)


class NormalizedLogisticGD(Optimizer):
    """``optimizer.step(closure)``, where ``closure`` returns the margins m_i of all samples, by any model.

    The step is η times the gradient of Σ s_i m_i with s held fixed, which for a linear model is the paper's. Once all
    margins are positive there is no step, because one as long as ever might undo the separation. There is no state.
    """

    def __init__(self, params: ParamsT, lr: float = 1.0) -> None:
        if not lr > 0:
            raise UserError(f"lr={lr}: a step size is positive")
        super().__init__(params, lr, {}, weight_decay=0.0)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """One step; the margins before it. Raises ``UserError`` without margins, one of each sample."""
        if closure is None:
            raise UserError("NormalizedLogisticGD.step needs a closure that returns the margins of all samples")
        with torch.enable_grad():
            margins = closure()
        if margins.ndim != 1 or not margins.requires_grad:
            raise UserError(
                f"the closure returned a tensor of shape {tuple(margins.shape)}"
                f"{'' if margins.requires_grad else ' without gradient'}; it should return one margin of each sample"
            )
        if (margins > 0).all():
            return margins.detach()
        self.zero_grad()
        margins.backward(-normalized_misfit(margins.detach()))
        super().step()
        return margins.detach()

    def update(self, group: dict[str, float], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        torch._foreach_add_(parameters, gradients, alpha=-group["lr"])


@dataclasses.dataclass(frozen=True)
class Separation:
    """``weight`` after ``steps`` updates from 0; ``losses``: the mean logistic loss before each of them, in nats."""

    weight: Float[Tensor, " features"]
    steps: int
    separated: bool
    losses: list[float]


def separate(
    inputs: Float[Tensor, "n features"],
    labels: Float[Tensor, " n"],
    *,
    method: Method = "normalized-logistic-gd",
    lr: float = 1.0,
    max_steps: int = 100_000,
) -> Separation:
    """Full-batch steps from θ = 0 until all margins are positive, in float64; a margin of 0 is an error.

    ``labels`` are −1 and 1, ``lr`` is η, which perceptrons do not have. There is no bias: append a constant feature.

    Raises ``UserError`` for other labels, for numbers that are not finite and for a step size that is not positive.
    """
    if method not in _WEIGHTS:
        raise UserError(f"unknown method {method!r}; known: {', '.join(_WEIGHTS)}")
    if not lr > 0:
        raise UserError(f"lr={lr}: a step size is positive")
    signed = _signed(inputs, labels)
    weights = _WEIGHTS[method]
    theta, losses = torch.zeros_like(signed[0]), []
    for step in range(max_steps + 1):
        margins = signed @ theta
        if (margins > 0).all() or step == max_steps:
            break
        losses.append(F.softplus(-margins).mean().item())
        theta = theta + signed.mT @ weights(margins, lr, step)
    return Separation(theta, step, bool((margins > 0).all()), losses)


def _misplaced(margins: Tensor) -> Tensor:
    return (margins <= 0).to(margins.dtype)


def _batch_perceptron(margins: Tensor, lr: float, step: int) -> Tensor:
    return _misplaced(margins) / len(margins) * (0.5 if step == 0 else 1.0)


def _perceptron(margins: Tensor, lr: float, step: int) -> Tensor:
    return F.one_hot(_misplaced(margins).argmax(), len(margins)).to(margins.dtype)


_WEIGHTS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "normalized-logistic-gd": lambda margins, lr, step: lr * normalized_misfit(margins),
    "logistic-gd": lambda margins, lr, step: lr * margins.neg().sigmoid() / len(margins),
    "normalized-batch-perceptron": lambda margins, lr, step: _misplaced(margins) / _misplaced(margins).sum(),
    "batch-perceptron": _batch_perceptron,
    "perceptron": _perceptron,
}
"""What a step adds of each y_i a_i. The perceptron takes the first sample that is misplaced."""


def _signed(inputs: Tensor, labels: Tensor) -> Float[Tensor, "n features"]:
    if inputs.ndim != 2 or labels.shape != inputs.shape[:1] or not len(labels):
        raise UserError(
            f"inputs of shape {tuple(inputs.shape)} with labels of shape {tuple(labels.shape)}; "
            "they should be (n, features) and (n,)"
        )
    if not (labels.abs() == 1).all():
        raise UserError("labels should be -1 and 1")
    signed = labels.double()[:, None] * inputs.double()
    if not signed.isfinite().all():
        raise UserError("inputs hold numbers that are not finite")
    return signed


def worst_case(n: int) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """The paper's data that make gradient descent slow: (½, −1) labelled 1, and n − 1 times (−½, −1) labelled −1."""
    if n < 2:
        raise UserError(f"n={n}: both labels need a sample, so n is at least 2")
    labels = torch.full((n,), -1.0, dtype=torch.float64)
    labels[0] = 1.0
    return torch.stack([0.5 * labels, torch.full_like(labels, -1.0)], dim=1), labels


def most_steps(n: int, *, radius: float, margin: float, method: Method, lr: float = 1.0) -> float:
    """How many steps ``method`` needs at most to separate n samples.

    ``radius`` is R, the length of the longest one; ``margin`` is μ, the largest distance at which a plane through the
    origin can keep all. Gradient descent has no bound here and is infinite.
    """
    once = (radius / margin) ** 2
    bounds = {
        "normalized-logistic-gd": once + 2 * math.log(2 * n - 1) / (lr * margin**2),
        "batch-perceptron": n * once,
        "normalized-batch-perceptron": once,
        "perceptron": once,
    }
    return bounds.get(method, math.inf)
