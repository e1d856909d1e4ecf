"""Gradient multi-normalization: a step without state, along a gradient that several norms find normal.

    X ← G,    then over and over, for each norm g of a list:    X ← P_g(X) = argmax ⟨X, Z⟩ over g(Z) = 1
    W ← (1 − ηλ)W − η α X

P_g takes the steepest direction in the norm g. The norms are scaled so that X of m rows and n columns, none of them
zero, comes to entries whose root mean square is 1:

    rows         largest row norm / √n         √n X_i / ‖X_i‖, for each row
    columns      largest column norm / √m      √m X_j / ‖X_j‖, for each column
    spectral     ‖X‖₂ / √max(m, n)             √max(m, n) U Vᵀ, for X = U Σ Vᵀ of full rank
    frobenius    ‖X‖ / √(mn)                   √(mn) X / ‖X‖
    max          largest absolute entry        sign X

``rows, spectral`` is SWAN, ``rows, columns`` SinkGD (``assay.optim.sinkgd``), ``spectral`` Muon without its momentum,
``max`` sign descent. Rows, columns and matrices of zeros stay zero. Embeddings, heads and vectors are AdamW's.

Scetbon, Ma, Gong, Meeds, 2025, arXiv:2502.06742.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from assay.optim.base import MatrixOptimizer
from assay.optim.registries import optimizers

Matrices = Float[Tensor, "*batch rows columns"]
Norm = Literal["rows", "columns", "spectral", "frobenius", "max"]


def scaled(x: Matrices, dim: int | tuple[int, int], size: float) -> Matrices:
    """The norms over ``dim`` become √size, those that are zero stay."""
    norms = x.norm(dim=dim, keepdim=True)
    return x * torch.where(norms > 0, size**0.5 / norms, 0.0)


def whitened(x: Matrices) -> Matrices:
    """√max(m, n) U Vᵀ over the singular values that are not zero to the precision of ``x``."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    kept = s > s[..., :1] * max(x.shape[-2:]) * torch.finfo(x.dtype).eps
    return max(x.shape[-2:]) ** 0.5 * (u * kept.unsqueeze(-2)) @ v


PROJECTIONS: dict[Norm, Callable[[Matrices], Matrices]] = {
    "rows": lambda x: scaled(x, -1, x.shape[-1]),
    "columns": lambda x: scaled(x, -2, x.shape[-2]),
    "spectral": whitened,
    "frobenius": lambda x: scaled(x, (-2, -1), x.shape[-2] * x.shape[-1]),
    "max": torch.sign,
}


def multi_normalize(gradient: Matrices, norms: Sequence[Norm], passes: int) -> Matrices:
    """``passes`` times P_g for each of ``norms`` in turn, from a gradient that is scaled to a largest entry of 1."""
    x = to_unit_size(gradient)
    for norm in tuple(norms) * passes:
        x = PROJECTIONS[norm](x)
    return x


def to_unit_size(gradient: Matrices) -> Matrices:
    """At least in float32 and with a largest entry of 1, so that no square is lost to a small number's limits."""
    x = gradient if gradient.dtype == torch.float64 else gradient.float()
    largest = torch.maximum(x.amax(dim=(-2, -1), keepdim=True), -x.amin(dim=(-2, -1), keepdim=True))
    return x * torch.where(largest > 0, 1 / largest, 1.0)


class StatelessOptimizer(MatrixOptimizer):
    """Matrices go along ``direction`` of their gradients alone.

    Those of one shape go as a batch; on a CPU, whose caches hold one matrix sooner than many, each goes by itself.
    """

    def direction(self, group: dict[str, Any], gradients: Float[Tensor, "batch rows columns"]) -> Tensor:
        raise NotImplementedError

    def update_matrices(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        lr = group["lr"]
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        together: dict[Any, list[int]] = defaultdict(list)
        for index, p in enumerate(parameters):
            together[index if p.device.type == "cpu" else tuple(p.shape)].append(index)
        for members in together.values():
            found = [gradients[i] for i in members]
            batch = found[0][None] if len(found) == 1 else torch.stack(found)
            directions = self.direction(group, batch.flatten(2))
            steps = [one.view(g.shape) for one, g in zip(directions, found, strict=True)]
            torch._foreach_add_([parameters[i] for i in members], steps, alpha=-lr * group["scale"])


@optimizers.register("multi-normalization")
class MultiNormalization(StatelessOptimizer):
    """``norms`` are taken in turn, ``passes`` times; ``scale`` is α, the step of matrices beside AdamW's.

    A list of one norm needs one pass. ``spectral`` takes the singular vectors of every gradient in every pass.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        norms: Annotated[tuple[Norm, ...], Field(min_length=1)] = ("rows", "columns"),
        passes: Annotated[int, Field(gt=0)] = 5,
        scale: Annotated[float, Field(gt=0)] = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, {"norms": tuple(norms), "passes": passes, "scale": scale}, **options)

    def direction(self, group: dict[str, Any], gradients: Float[Tensor, "batch rows columns"]) -> Tensor:
        return multi_normalize(gradients, group["norms"], group["passes"])
