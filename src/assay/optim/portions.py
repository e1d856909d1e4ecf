"""Portions of a group that fit a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

PORTION = 2**23
"""Bytes of parameters that a CPU takes at a time, where a step reads them more than once."""


def portions(parameters: Sequence[Tensor]) -> Iterator[slice]:
    """Places of parameters that a step takes together: all, but on a CPU no more than one above ``PORTION`` bytes."""
    start = size = 0
    for place, parameter in enumerate(parameters):
        own = parameter.numel() * parameter.element_size() if parameter.device.type == "cpu" else 0
        if place > start and size + own > PORTION:
            yield slice(start, place)
            start, size = place, 0
        size += own
    if start < len(parameters):
        yield slice(start, len(parameters))
