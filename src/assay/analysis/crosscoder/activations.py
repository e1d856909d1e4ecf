"""Activations of two models for the same tokens, computed as they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from assay.diagnostics.subject import Subject, first_tensor
from assay.errors import UserError

Pair = Float[Tensor, "batch 2 hidden"]
"""Activations of the first and the second model for one token each."""

TOGETHER = 2048
"""Tokens that go through a model at once."""
BUFFER = 8
"""Batches among which pairs are shuffled."""


def residual_pairs(
    first: PreTrainedModel,
    second: PreTrainedModel,
    windows: Int[Tensor, "windows time"],
    *,
    layer: int,
    batch_size: int,
    seed: int | None = None,
) -> Iterator[Pair]:
    """The residual stream behind ``layer``, counted from 0, in batches of ``batch_size`` pairs.

    The first token of each window is left out: its stream is far larger than any other's and carries no text. With a
    ``seed`` windows come in random order, pass after pass without end, and pairs are shuffled within ``BUFFER``
    batches; without one there is a single pass in order, whose last batch may be smaller.

    Raises ``UserError`` for a layer that the models do not have, or streams of different widths.
    """
    subjects = [Subject(first), Subject(second)]
    for which, subject in zip(("first", "second"), subjects, strict=True):
        if not 0 <= layer < len(subject.layers):
            raise UserError(f"layer {layer}: the {which} model has layers 0 to {len(subject.layers) - 1}")
    widths = [subject.hidden_size for subject in subjects]
    if widths[0] != widths[1]:
        raise UserError(f"the models' residual streams have {widths[0]} and {widths[1]} features; both need the same")
    if windows.shape[1] < 2:
        raise UserError("windows have 1 token, and the first of each is left out; 2 are the least")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return _pairs(subjects, windows, layer, batch_size, generator)


def _pairs(
    subjects: list[Subject],
    windows: Int[Tensor, "windows time"],
    layer: int,
    batch_size: int,
    generator: torch.Generator | None,
) -> Iterator[Pair]:
    rows = max(1, TOGETHER // windows.shape[1])
    waiting: list[Tensor] = []
    while True:
        ordered = windows if generator is None else windows[torch.randperm(len(windows), generator=generator)]
        for ids in ordered.split(rows):
            streams = [_stream(subject, ids.to(subject.device), layer)[:, 1:].flatten(0, 1) for subject in subjects]
            waiting.append(torch.stack(streams, 1).float().cpu())
            if sum(map(len, waiting)) < batch_size * (1 if generator is None else BUFFER):
                continue
            together = torch.cat(waiting)
            if generator is not None:
                together = together[torch.randperm(len(together), generator=generator)]
            whole = len(together) // batch_size * batch_size
            yield from together[:whole].split(batch_size)
            waiting = [together[whole:]]
        if generator is None:
            rest = torch.cat(waiting)
            if len(rest):
                yield rest
            return


@torch.no_grad()
def _stream(subject: Subject, ids: Int[Tensor, "rows time"], layer: int) -> Float[Tensor, "rows time hidden"]:
    found: list[Tensor] = []

    def leave(module: Any, inputs: Any, output: Any) -> None:
        found.append(subject.decoder.residual.finish(output) if subject.decoder is not None else first_tensor(output))
        raise _Left

    handle = subject.layers[layer].module.register_forward_hook(leave)
    try:
        subject.logits(ids)
    except _Left:
        pass
    finally:
        handle.remove()
    return found[0]


class _Left(Exception):
    """What lies behind the layer is not needed."""


def scales_of(batches: Iterable[Pair]) -> Float[Tensor, " 2"]:
    """Factors that bring each model's activations to a root mean square of 1."""
    squares, count = torch.zeros(2, dtype=torch.float64), 0
    for x in batches:
        squares += x.double().square().sum((0, 2))
        count += x.shape[0] * x.shape[2]
    return (count / squares).sqrt().float()
