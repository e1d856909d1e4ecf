"""The loss of a causal language model, by the classes of the current token and of the one to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_utils import PreTrainedModel

from assay.analysis.function_tokens.split import TokenCounts, membership
from assay.analysis.layers import at_layers
from assay.errors import UserError

Kind = Literal["function", "content"]


@dataclasses.dataclass(frozen=True)
class Observed:
    """What a model made of a text, one entry per position that has a token and a next one."""

    inputs: Int[Tensor, " positions"]
    targets: Int[Tensor, " positions"]
    loss: Float[Tensor, " positions"]
    """−ln p of the target, in nats."""
    states: Float[Tensor, "positions hidden"] | None
    """The residual stream behind the layer that was asked for."""


@dataclasses.dataclass(frozen=True)
class ClassLoss:
    """Positions with a ``current`` token of one class and a ``following`` one of one."""

    current: Kind
    following: Kind
    count: int
    loss: float
    """Mean, in nats; 0 where there is no position."""
    share: float
    """Of the loss of all positions."""
    frequency_loss: float
    """Mean loss of predicting the same targets from their frequency in the corpus alone, in nats."""


@torch.no_grad()
def observe(
    model: PreTrainedModel,
    documents: Sequence[Integer[np.ndarray, " length"]],
    *,
    separator: int,
    tokens: int = 20_000,
    length: int = 256,
    layer: int | None = None,
) -> Observed:
    """Run ``model`` over the first ``tokens`` tokens, each document in pieces of ``length`` behind a separator.

    The separator itself is no position. With ``layer``, counted from 0, the residual stream behind it is kept.
    Raises ``UserError`` for a piece shorter than 2 tokens, a layer that is not there, or a text of only such pieces.
    """
    if length < 2:
        raise UserError(f"length {length} leaves nothing to predict; a piece needs at least 2 tokens")
    depth = int(getattr(model.config, "num_hidden_layers", 0))
    if layer is not None and not 0 <= layer < depth:
        raise UserError(f"there is no layer {layer}; the model has the layers 0 to {depth - 1}")
    states: list[Tensor] = []
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(index: int, state: Float[Tensor, "batch time hidden"]) -> None:
        if index == layer:
            states.append(state[0, 1:-1].float().cpu())

    def run(piece: Tensor) -> None:
        row = torch.cat((torch.tensor([separator]), piece)).to(model.device)
        logits = model(row[None], use_cache=False).logits[0, 1:-1].float()
        found.append((piece[:-1], piece[1:], F.cross_entropy(logits, row[2:], reduction="none").cpu()))

    left = tokens
    for document in documents:
        ids = torch.from_numpy(np.asarray(document[: max(left, 0)], np.int64))
        left -= len(ids)
        for piece in (piece for piece in ids.split(length) if len(piece) > 1):
            if layer is None:
                run(piece)
            else:
                with at_layers(model, keep):
                    run(piece)
    if not found:
        raise UserError("the text has no two tokens in a row to predict one from; give more text")
    inputs, targets, loss = (torch.cat(part) for part in zip(*found, strict=True))
    return Observed(inputs, targets, loss, torch.cat(states) if states else None)


def class_losses(
    seen: Observed, counts: TokenCounts, function: Integer[np.ndarray, " function"]
) -> tuple[ClassLoss, ClassLoss, ClassLoss, ClassLoss]:
    """The loss by class of the current token and of the next: f → f, f → c, c → f, c → c.

    Targets that ``counts`` do not know have no frequency and raise ``UserError``.
    """
    unknown = np.setdiff1d(seen.targets.numpy(), counts.ids)
    if len(unknown):
        raise UserError(f"token {unknown[0]} of the text is not among the counted ones; count a text that has it")
    loss = seen.loss.double().numpy()
    by_id = np.argsort(counts.ids)
    frequency = counts.surprise[by_id][np.searchsorted(counts.ids[by_id], seen.targets.numpy())]
    current, following = (membership(ids.numpy(), function) for ids in (seen.inputs, seen.targets))

    def group(first: Kind, second: Kind) -> ClassLoss:
        chosen = (current == (first == "function")) & (following == (second == "function"))
        count = int(chosen.sum())
        return ClassLoss(
            first,
            second,
            count,
            float(loss[chosen].mean()) if count else 0.0,
            float(loss[chosen].sum() / loss.sum()) if count else 0.0,
            float(frequency[chosen].mean()) if count else 0.0,
        )

    return (
        group("function", "function"),
        group("function", "content"),
        group("content", "function"),
        group("content", "content"),
    )
