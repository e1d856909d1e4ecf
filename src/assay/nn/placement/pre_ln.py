"""Pre-LN: x + F(N(x)), and a norm after the last layer. Xiong et al., 2020, arXiv:2002.04745."""

from __future__ import annotations

from assay.nn.placement import Placement, placements


@placements.register("pre-ln")
class PreLN:
    embedding_norm = False
    final_norm = True

    def at(self, layer: int, depth: int) -> Placement:
        return Placement(input=True)
