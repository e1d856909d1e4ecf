"""Positions: how a network knows the order of its tokens.

A position component may add to the embedding (``embed``), rotate queries and keys (``rotation``), or neither.
It is constructed with what it asks for of ``(hidden_size, head_dim, max_length)``.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.registry import Registry

Rotation = tuple[Float[Tensor, "batch 1 time half"], Float[Tensor, "batch 1 time half"]]


class Position(nn.Module):
    """No information on positions; others override what they change."""

    def embed(
        self, x: Float[Tensor, "batch time hidden"], ids: Int[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time hidden"]:
        """The embedding with positions in it."""
        return x

    def rotation(self, ids: Int[Tensor, "batch time"], dtype: torch.dtype) -> Rotation | None:
        """Cosines and sines by which each pair of features of a query or key is turned."""
        return None


@dataclasses.dataclass(frozen=True)
class Positions:
    """What a mixer is told about the places of its tokens, computed once per forward.

    ``mask`` is true where a query may see a key; None means causal over a whole sequence.
    """

    rotation: Rotation | None = None
    mask: Bool[Tensor, "batch 1 query key"] | None = None

    def rotate(self, x: Float[Tensor, "batch heads time dim"]) -> Float[Tensor, "batch heads time dim"]:
        """Turn the pairs (x_j, x_{j + dim/2}) by their angles; x itself where there is no rotation."""
        if self.rotation is None:
            return x
        cos, sin = self.rotation
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


positions: Registry[Position] = Registry("position", __name__)
positions.register("none")(Position)
