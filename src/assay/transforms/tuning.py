"""Fine-tuning within a transform: a small loop that others hook into.

Batches follow from the seed and the step alone, and nothing else is random: two calls with one seed give the same
weights (on a CPU bit for bit).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from assay.config import Config
from assay.data.windows import IGNORED, TokenData, bits_per_byte
from assay.errors import AssayError, UserError
from assay.models import Decoder
from assay.optim import Schedule, build_optimizer, optimizers, schedules
from assay.quantities import Count, short
from assay.slots import Component, In
from assay.transforms import Report, silent

LONGEST = 256
"""Tokens of a sequence, where nothing else is said and the model can take as many."""


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
OptimizerSlot = Annotated[Component[torch.optim.Optimizer], In(optimizers, default="adamw")]
ScheduleSlot = Annotated[Component[Schedule], In(schedules, default="cosine")]


class Tuning(Config):
    """The option ``tuning`` of a transform: how it fine-tunes.

    Attributes:
        steps: updates of the weights.
        batch_size: sequences in a step.
        sequence_length: tokens that a sequence predicts; the model's ``max_length`` where it is not set, at most 256.
        lr: the peak learning rate.
        optimizer: without its ``lr``.
        schedule: the learning rate over the steps.
        grad_clip: largest gradient norm.
        seed: of the order of the batches.
    """

    steps: Count = 300
    batch_size: Count = 8
    sequence_length: Annotated[Count, Field(ge=2)] | None = None
    lr: Rate = 3e-4
    optimizer: OptimizerSlot = Component(optimizers, "adamw", {"weight_decay": 0.01})
    schedule: ScheduleSlot = Component(schedules, "cosine")
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def of(cls, value: Any) -> Self:
        """A validator for a transform's option: a table is checked and filled up."""
        if isinstance(value, Mapping):
            try:
                return cls.parse(value)
            except UserError as error:
                raise PydanticCustomError("component", "{reason}", {"reason": str(error)}) from None
        return value

    def length(self, model: Decoder) -> int:
        """Tokens of a sequence for this model. Raises ``UserError`` if they are more than it has positions for."""
        longest = model.config.max_length or LONGEST
        if self.sequence_length is not None and self.sequence_length > longest:
            raise UserError(f"tuning.sequence_length={self.sequence_length} is more than the model's {longest}")
        return self.sequence_length or min(LONGEST, longest)

    def batch(self, data: TokenData, model: Decoder, step: int) -> Int[Tensor, "batch time+1"]:
        """Sequences, each with the token that follows it, on the model's device.

        Raises ``UserError`` for a text that is shorter than one.
        """
        length = self.length(model)
        if len(data.train) <= length:
            raise UserError(
                f"{data.corpus!r} has {len(data.train)} tokens to train on, fewer than one sequence of {length + 1}; "
                f"give a longer text, or a tuning.sequence_length below {len(data.train)}"
            )
        rows = data.batch(step, seed=self.seed, batch_size=self.batch_size, sequence_length=length)
        return rows.to(model.embedding.weight.device, non_blocking=True)


@torch.enable_grad()
def tune(
    model: Decoder,
    data: TokenData,
    tuning: Tuning,
    *,
    before_step: Callable[[int], None] | None = None,
    penalty: Callable[[Int[Tensor, "batch time"]], Float[Tensor, ""]] | None = None,
    report: Report = silent,
) -> None:
    """Train all parameters of ``model`` that ask for gradients, on cross-entropy + ``penalty``.

    ``before_step`` is told each step's number, from 0; ``penalty`` is called after the forward with its input. Raises
    ``AssayError`` once the loss is not finite.
    """
    optimizer = build_optimizer(tuning.optimizer, model, lr=tuning.lr)
    schedule = tuning.schedule.build()
    rates = [group["lr"] for group in optimizer.param_groups]
    start = time.perf_counter()
    model.train()
    for step in range(tuning.steps):
        if before_step is not None:
            before_step(step)
        factor = schedule((step + 0.5) / tuning.steps)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        rows = tuning.batch(data, model, step)
        loss = cross_entropy = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        if penalty is not None:
            loss = loss + penalty(rows[:, :-1])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), tuning.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(loss.item()):
            raise AssayError(
                f"the loss is no longer finite at step {step + 1} of {tuning.steps}; lower tuning.lr, or have the "
                "transform take more steps"
            )
        speed = (step + 1) * rows[:, 1:].numel() / (time.perf_counter() - start)
        report((step + 1) / tuning.steps, f"loss {cross_entropy.item():.3f}  {short(speed)} tokens/s")
    model.eval()


class HeldOut(NamedTuple):
    """The loss on text that was kept for validation."""

    nats_per_token: float
    bits_per_byte: float


@torch.no_grad()
def held_out(model: Decoder, data: TokenData, *, sequence_length: int, batch_size: int = 8) -> HeldOut:
    """The mean cross-entropy over the validation text, and its bits per byte."""
    total, targets_in_text = 0.0, 0
    device = model.embedding.weight.device
    for inputs, targets in data.evaluation(sequence_length, batch_size):
        logits = model(inputs.to(device)).flatten(0, 1).float()
        total += F.cross_entropy(logits, targets.to(device).flatten(), reduction="sum", ignore_index=IGNORED).item()
        targets_in_text += int((targets != IGNORED).sum())
    return HeldOut(total / targets_in_text, bits_per_byte(total, data.eval_bytes))
