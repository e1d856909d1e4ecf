"""Steps in float32 for parameters that have less."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulator(parameter: Tensor) -> torch.dtype:
    """float32 for the state of parameters that have less."""
    return torch.float32 if parameter.dtype in (torch.bfloat16, torch.float16) else parameter.dtype


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors themselves, or copies in float32 of those that have less."""
    return [tensor.to(accumulator(tensor)) for tensor in tensors]


def write_back(parameters: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Undo ``widened``."""
    for parameter, weight in zip(parameters, weights, strict=True):
        if weight is not parameter:
            parameter.copy_(weight)
