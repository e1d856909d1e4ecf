"""Flatness: the trace of the Hessian of the pre-training loss, and whether it tells which of equals transfers better.

    T = E_{x,t} E_{y ~ p(· | x_<t)} ‖∇ log p(y | x_<t)‖²

over all parameters, the label y drawn from the model and not from the data. Where p is the true conditional T is the
trace of the loss's Hessian; elsewhere it is that of the Gauss–Newton matrix. All positions of a window share one
backward pass: labels of different positions are independent with mean gradient 0, so E‖Σ_t g_t‖² = Σ_t E‖g_t‖².

T is not invariant to how a function is parameterized: compare checkpoints of one architecture, at equal loss.
Liu, Xie, Li, Ma, 2022, arXiv:2210.14199, for masked language models; the causal form is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor, nn

from assay.errors import UserError
from assay.measures.curvature import Estimate
from assay.models.hugging_face.model import AssayForCausalLM

Ids = Int[Tensor, "batch time"]


@dataclass(frozen=True)
class Flatness:
    """``loss`` in nats per token; ``trace`` and its standard error; how many ``parameters`` it is summed over."""

    loss: float
    trace: float
    error: float
    parameters: int


def flatness(model: nn.Module, ids: Ids, *, draws: int = 64, generator: torch.Generator | None = None) -> Flatness:
    """The loss of a causal language model on windows of text, and T from ``draws`` backward passes.

    The model gives logits, or an output that has them. Raises ``UserError`` as ``fisher_trace`` does.
    """
    estimate = fisher_trace(model, ids, draws=draws, generator=generator)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Flatness(next_token_loss(model, ids), estimate.mean, estimate.error, learning)


def fisher_trace(
    model: nn.Module, ids: Ids, *, draws: int = 64, generator: torch.Generator | None = None
) -> Estimate:
    """T over the parameters that require gradients; each draw takes the next window. Dropout is off.

    Raises ``UserError`` for fewer than two draws, windows of fewer than two tokens or a model without parameters.
    """
    if draws < 2:
        raise UserError(f"draws={draws}; an estimate with an error needs at least 2")
    if ids.ndim != 2 or ids.shape[1] < 2 or not len(ids):
        raise UserError(f"ids of shape {list(ids.shape)}; windows of at least two tokens are needed")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("the model has no parameter that requires gradients")
    training = model.training
    model.eval()
    squares = []
    for draw in range(draws):
        logits = _logits(model, ids[draw % len(ids)][None])[0, :-1].float()
        labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
        loss = F.cross_entropy(logits, labels.to(logits.device), reduction="sum")
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        square = torch.stack([g.float().square().sum() for g in gradients if g is not None]).sum()
        squares.append(square.item() / len(logits))
    model.train(training)
    found = torch.tensor(squares, dtype=torch.float64)
    return Estimate(found.mean().item(), found.std().item() / math.sqrt(draws))


@torch.no_grad()
def next_token_loss(model: nn.Module, ids: Ids) -> float:
    """Mean cross-entropy in nats per predicted token, some 4096 tokens at a time."""
    total = 0.0
    for some in ids.split(max(1, 4096 // ids.shape[1])):
        logits = _logits(model, some)[:, :-1].flatten(0, 1).float()
        total += F.cross_entropy(logits, some[:, 1:].flatten(), reduction="sum").item()
    return total / (ids.shape[0] * (ids.shape[1] - 1))


def equals(losses: Sequence[float], tolerance: float) -> list[int]:
    """Which losses are within ``tolerance`` of the lowest: only their traces may be compared."""
    return [index for index, loss in enumerate(losses) if loss <= min(losses) + tolerance]


def agreement(traces: Sequence[float], accuracies: Sequence[float]) -> float:
    """Spearman's correlation of flatness (−T) with transfer: 1 where the flatter is the better, throughout.

    NaN for fewer than three models, or where all have one trace or one accuracy.
    """
    if len(traces) < 3 or len(set(traces)) == 1 or len(set(accuracies)) == 1:
        return math.nan
    return -float(spearmanr(traces, accuracies).statistic)


@torch.no_grad()
def text_features(model: Any, texts: Sequence[Int[Tensor, " time"]]) -> Float[Tensor, "texts hidden"]:
    """The model's last hidden states, on average over the tokens of each text."""

    def hidden(ids: Ids) -> Tensor:
        if isinstance(model, AssayForCausalLM):
            return model.decoder.hidden(ids)
        return model.base_model(ids).last_hidden_state

    return torch.stack([hidden(ids[None])[0].float().mean(0) for ids in texts])


def linear_probe(
    features: Float[Tensor, "train hidden"],
    labels: Int[Tensor, " train"],
    test_features: Float[Tensor, "test hidden"],
    test_labels: Int[Tensor, " test"],
    *,
    ridge: float = 1e-3,
) -> float:
    """The test accuracy of a logistic regression on standardized features, fitted by L-BFGS with a ridge.

    The loss is the mean cross-entropy plus ``ridge`` / 2 times the squared weights. Raises ``UserError`` for fewer
    than two classes.
    """
    classes = int(max(labels.max(), test_labels.max())) + 1
    if len(labels.unique()) < 2:
        raise UserError("a probe needs texts of at least two labels to learn from")
    mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
    x, test = ((part - mean) / deviation for part in (features, test_features))
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + ridge / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return (F.linear(test, weight, bias).argmax(-1) == test_labels).float().mean().item()


def _logits(model: nn.Module, ids: Ids) -> Float[Tensor, "batch time vocab"]:
    output: Any = model(ids)
    return output if isinstance(output, Tensor) else output.logits
