"""Mix-LN: Post-LN in the first layers, Pre-LN in the rest.

    layer i < ⌊α·L⌋: N(x + F(x)),    other layers: x + F(N(x))

with a norm after the last layer and none at the switch. Li, Yin, Liu, 2024, arXiv:2412.13795.
"""

from __future__ import annotations

from assay.errors import UserError
from assay.nn.placement import Placement, placements


@placements.register("mix-ln")
class MixLN:
    """``post_share`` is the paper's α. Raises ``UserError`` if it is outside [0, 1]."""

    embedding_norm = False
    final_norm = True

    def __init__(self, *, post_share: float = 0.25) -> None:
        if not 0 <= post_share <= 1:
            raise UserError(f"placement 'mix-ln': post_share={post_share} is outside [0, 1]")
        self.post_share = post_share

    def at(self, layer: int, depth: int) -> Placement:
        post = layer < int(self.post_share * depth + 1e-9)
        return Placement(stream=True) if post else Placement(input=True)
