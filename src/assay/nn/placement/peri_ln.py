"""Peri-LN: a norm on each branch's input and one on its output.

    x + N_out(F(N_in(x)))

The four norms of a layer have gains of their own; the last stream is normed too. ``embedding_norm`` adds the
paper's optional norm of the embedding. Kim et al., 2025, arXiv:2502.02732.
"""

from __future__ import annotations

from assay.nn.placement import Placement, placements


@placements.register("peri-ln")
class PeriLN:
    final_norm = True

    def __init__(self, *, embedding_norm: bool = False) -> None:
        self.embedding_norm = embedding_norm

    def at(self, layer: int, depth: int) -> Placement:
        return Placement(input=True, output=True)
