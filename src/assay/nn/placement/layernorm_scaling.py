"""LayerNorm Scaling: Pre-LN whose norms are divided by the square root of the layer's number.

    x + F(N(x) / √l),    l = 1 .. L

Both norms of a layer have the same factor; the norm before the head has none. Sun et al., 2025,
arXiv:2502.05795.
"""

from __future__ import annotations

from assay.nn.placement import Placement, placements


@placements.register("layernorm-scaling")
class LayerNormScaling:
    embedding_norm = False
    final_norm = True

    def at(self, layer: int, depth: int) -> Placement:
        return Placement(input=True, input_scale=(layer + 1) ** -0.5)
