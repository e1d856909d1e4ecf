"""The configuration of a run: where it starts, model, data, loss, optimizer and what stands around it, seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import nn

from assay.config import Config, assign, read_toml
from assay.data import DataConfig
from assay.data.order import orders
from assay.losses import losses
from assay.models import ModelConfig
from assay.optim import (
    Average,
    Constraint,
    GradientTransform,
    Schedule,
    Selection,
    Transfer,
    averages,
    constraints,
    gradients,
    optimizers,
    schedules,
    selections,
    transfers,
)
from assay.quantities import Amount, Count, Seconds
from assay.slots import Component, In
from assay.training.start import Start, starts
from assay.version import __version__


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    if names:
        from assay.diagnostics import diagnostics

        for name in names:
            diagnostics[name]
    return names


class TrainingConfig(Config):
    """How long and how to train.

    One of three budgets: ``tokens``, ``flops`` (forward and backward, counted on the model itself) or
    ``seconds`` (of training steps; evaluation and checkpoints don't count). ``evaluations`` are spread evenly over
    the run, the last at its end; all but the last read an eighth of the validation text. The numbers of
    ``diagnostics``, by name, are logged every ``diagnostics_every`` steps and at the end. At the shares of the budget
    that ``keep`` lists, the whole validation text is read, and a checkpoint stays in ``checkpoints/STEP``.
    """

    tokens: Count | None = None
    flops: Amount | None = None
    seconds: Seconds | None = None

    precision: Literal["float32", "bfloat16"] = "float32"
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    micro_batch_size: Count | None = None
    evaluations: Count = 5
    diagnostics: Annotated[tuple[str, ...], AfterValidator(_known)] = ()
    diagnostics_every: Count = 100
    keep: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()

    compile: bool | Literal["auto"] = "auto"
    sharding: Literal["none", "fsdp"] = "none"
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    trackers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in ("tokens", "flops", "seconds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both set; a run has one budget")
        if not given:
            object.__setattr__(self, "tokens", 1_000_000)
        return self


EXECUTION = ("compile", "sharding", "checkpoint_seconds", "trackers")
"""Fields of ``training`` that say how a run is carried out, not what it is: they don't enter its id."""


LATER_SLOTS = ("gradient", "selection", "average", "start", "transfer")
"""Slots that came after the first runs, whose ids they leave as they were unless they are used."""


class RunConfig(Config):
    """Everything that defines one run. A slot is a component's name, or its name with options."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: Annotated[Component[torch.optim.Optimizer], In(optimizers, default="adamw")] = Component(
        optimizers, "adamw"
    )
    transfer: Annotated[Component[Transfer], In(transfers, default="weight-decay-scaling")] = Component(
        transfers, "none"
    )
    schedule: Annotated[Component[Schedule], In(schedules, default="warmup-stable-decay")] = Component(
        schedules, "warmup-stable-decay"
    )
    gradient: Annotated[Component[GradientTransform], In(gradients)] = Component(gradients, "none")
    selection: Annotated[Component[Selection], In(selections)] = Component(selections, "all")
    constraint: Annotated[Component[Constraint], In(constraints, default="none")] = Component(constraints, "none")
    average: Annotated[Component[Average], In(averages)] = Component(averages, "none")
    start: Annotated[Component[Start], In(starts, default="checkpoint")] = Component(starts, "initialization")
    loss: Annotated[Component[nn.Module], In(losses, default="cross-entropy")] = Component(losses, "cross-entropy")
    training: TrainingConfig = TrainingConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _derive(self) -> Self:
        if self.model.max_length is None:
            object.__setattr__(self, "model", self.model.model_copy(update={"max_length": self.data.sequence_length}))
        length = self.model.max_length or 0
        if length < self.data.sequence_length and self.model.position.name == "learned":
            raise ValueError(
                f"model.max_length={length} is shorter than data.sequence_length={self.data.sequence_length}"
            )
        if "lr" not in self.optimizer.options:
            width = self.transfer.build(hidden_size=self.model.hidden_size).width
            rate = self.model.model_copy(update={"hidden_size": width}).learning_rate()
            options = {**self.optimizer.options, "lr": rate}
            object.__setattr__(self, "optimizer", Component(optimizers, self.optimizer.name, options))
        tokens = (self.training.tokens or 0) // self.tokens_per_step * self.tokens_per_step
        samples = getattr(orders[self.data.order.name], "samples", False)
        if tokens and samples and "tokens" not in self.data.order.options:
            order = Component(orders, self.data.order.name, {**self.data.order.options, "tokens": tokens})
            object.__setattr__(self, "data", self.data.model_copy(update={"order": order}))
        micro = self.training.micro_batch_size
        if micro is not None and self.data.batch_size % micro:
            raise ValueError(
                f"training.micro_batch_size={micro} does not divide data.batch_size={self.data.batch_size}"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.data.batch_size * self.data.sequence_length

    def with_vocabulary(self, vocab_size: int) -> RunConfig:
        """The same run with the tokenizer's vocabulary size, which a larger ``model.vocab_size`` overrides."""
        size = max(vocab_size, self.model.vocab_size or 0)
        return self.model_copy(update={"model": self.model.model_copy(update={"vocab_size": size})})

    def with_seed(self, seed: int) -> RunConfig:
        return self.model_copy(update={"seed": seed})

    def run_id(self, data_fingerprint: str) -> str:
        """Sixteen hexadecimal digits that two runs share exactly when they are the same experiment."""
        description = self.dump()
        for field in EXECUTION:
            del description["training"][field]
        if not self.training.diagnostics:
            del description["training"]["diagnostics"], description["training"]["diagnostics_every"]
        if not self.training.keep:
            del description["training"]["keep"]
        for slot in LATER_SLOTS:
            if getattr(self, slot) == RunConfig.model_fields[slot].default:
                del description[slot]
        if "start" in description:
            description["start"] = self.start.build(seed=self.seed).identity()
        del description["data"]["corpus"], description["data"]["order"]
        identity = {"assay": __version__, "data": data_fingerprint, "config": description}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def read_run_config(
    source: RunConfig | str | Path | Mapping[str, Any] | None = None, values: Mapping[str, Any] | None = None
) -> RunConfig:
    """A configuration from a TOML file, a table or nothing (defaults), with dotted ``values`` set over it."""
    if isinstance(source, RunConfig):
        if not values:
            return source
        source = source.dump()
    data = read_toml(source) if isinstance(source, str | Path) else source or {}
    return RunConfig.parse(assign(data, values or {}))
