"""Post-LN: N(x + F(x)). Vaswani et al., 2017, arXiv:1706.03762."""

from __future__ import annotations

from assay.nn.placement import Placement, placements


@placements.register("post-ln")
class PostLN:
    embedding_norm = False
    final_norm = False

    def at(self, layer: int, depth: int) -> Placement:
        return Placement(stream=True)
