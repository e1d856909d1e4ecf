"""Norms: maps of a vector that control its size.

A norm is constructed with ``(hidden_size)`` and maps ``[*batch, hidden] → [*batch, hidden]``. Statistics are
taken in float32, or in the input's precision where that is higher.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from assay.registry import Registry

norms: Registry[nn.Module] = Registry("norm", __name__)

NormFactory = Callable[[int], nn.Module]
"""Makes a norm of the configured kind over the given number of features."""
