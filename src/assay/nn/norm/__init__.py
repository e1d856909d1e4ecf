"""Norms: maps of a vector that control its size.

A norm is constructed with what it asks for of ``(hidden_size, place)`` and maps ``[*batch, hidden] → [*batch,
hidden]``. Statistics are taken in float32, or in the input's precision where that is higher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from assay.registry import Registry

norms: Registry[nn.Module] = Registry("norm", __name__)

NormPlace = Literal["embedding", "input", "output", "stream", "heads", "final"]
"""What a norm's result is: a branch's input, a branch's output, the stream itself (also at its start and its end), or
the features of each head."""

NormFactory = Callable[[int], nn.Module]
"""Makes a norm of the configured kind over the given number of features."""
