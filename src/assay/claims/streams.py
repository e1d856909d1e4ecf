"""The residual stream of a decoder as it grows over the layers, for properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.diagnostics.subject import Subject
from assay.models import Decoder

T = TypeVar("T")


@torch.no_grad()
def after_each_layer(
    model: Decoder, ids: Int[Tensor, "batch time"], reduce: Callable[[Float[Tensor, "batch time hidden"]], T]
) -> list[T]:
    """``reduce`` of what the head would read (before its norm) after each layer, in one forward pass."""
    found: list[T] = []
    with Subject(model).listening(layer=lambda step: found.append(reduce(step.after.double()))):
        model.hidden(ids)
    return found
