"""Placements: where norms stand around a sublayer.

A decoder layer has two sublayers (mixer and MLP). Around a branch F that reads x from the residual stream
there are three places for a norm N, each with parameters of its own:

    input     F(c · N(x))       c is ``input_scale``
    output    x + N(F(x))
    stream    N(x + F(x))

A placement rule gives the values for each layer, and says whether the embedding and the last stream are
normed.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from assay.registry import Registry


@dataclasses.dataclass(frozen=True)
class Placement:
    """The norms around both sublayers of one layer."""

    input: bool = False
    output: bool = False
    stream: bool = False
    input_scale: float = 1.0


class PlacementRule(Protocol):
    embedding_norm: bool
    """A norm on the embedding, before the first layer."""
    final_norm: bool
    """A norm on the last stream, before the head."""

    def at(self, layer: int, depth: int) -> Placement:
        """The placement in layer ``layer`` (from 0) of ``depth``."""
        ...


placements: Registry[PlacementRule] = Registry("placement", __name__)
