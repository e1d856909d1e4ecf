"""SinkGD: a step without state, along a gradient whose rows and columns are brought to one norm each.

    X ← G,    L times:    X_i ← √n X_i / ‖X_i‖ for each row,    X_j ← √m X_j / ‖X_j‖ for each column
    W ← (1 − ηλ)W − η α X

for G of m rows and n columns. It is multi-normalization by the largest row norm and the largest column norm. The
squares of X are those of G, scaled by Sinkhorn's factors for rows and columns:

    r_i ← n / Σ_j G_ij² c_j,    c_j ← m / Σ_i G_ij² r_i,    X_ij = √r_i G_ij √c_j

so only G² is read in a pass, and no matrix written. The factor of a row or column of zeros is zero. Embeddings, heads
and vectors are updated by AdamW.

Scetbon, Ma, Gong, Meeds, 2025, arXiv:2502.06742.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from assay.optim.multi_normalization import StatelessOptimizer, to_unit_size
from assay.optim.registries import optimizers


def sr_sinkhorn(
    gradient: Float[Tensor, "*batch rows columns"], passes: int = 5
) -> Float[Tensor, "*batch rows columns"]:
    """The square-root Sinkhorn scaling of ``gradient``, at least in float32."""
    x = to_unit_size(gradient)
    squares = x.square()
    rows, columns = x.shape[-2:]
    by_column = x.new_ones(*x.shape[:-2], columns, 1)
    for _ in range(passes):
        by_row = _divided(columns, squares @ by_column)
        by_column = _divided(rows, squares.mT @ by_row)
    return (x * by_row.sqrt()).mul_(by_column.sqrt().mT)


def _divided(size: int, sums: Tensor) -> Tensor:
    return torch.where(sums > 0, size / sums, 0.0)


@optimizers.register("sinkgd")
class SinkGD(StatelessOptimizer):
    """``passes`` is L; ``scale`` is α, the step of matrices beside AdamW's; the rest as for ``MatrixOptimizer``."""

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        passes: Annotated[int, Field(gt=0)] = 5,
        scale: Annotated[float, Field(gt=0)] = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, {"passes": passes, "scale": scale}, **options)

    def direction(self, group: dict[str, Any], gradients: Float[Tensor, "batch rows columns"]) -> Tensor:
        return sr_sinkhorn(gradients, group["passes"])
