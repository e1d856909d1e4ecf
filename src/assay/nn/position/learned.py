"""Learned positions: a trained vector per position, added to the embedding.

    x_p = E[token_p] + P[p]

Radford et al., 2019 (GPT-2); Gehring et al., 2017, arXiv:1705.03122.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.nn.position import Position, positions


@positions.register("learned")
class Learned(Position):
    """Positions beyond ``max_length`` have no vector."""

    def __init__(self, hidden_size: int, max_length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_length, hidden_size)

    def embed(
        self, x: Float[Tensor, "batch time hidden"], ids: Int[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time hidden"]:
        return x + self.table(ids)
