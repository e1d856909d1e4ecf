"""No transform: the optimizer sees the gradients as they are, or clipped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from assay.optim.registries import Stateless, gradients


@gradients.register("none")
class Untransformed(Stateless):
    def __call__(self, parameters: Sequence[nn.Parameter], step: int) -> None:
        pass
