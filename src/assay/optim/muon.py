"""Muon: momentum whose matrices are orthogonalised.

    M ← μM + (1−μ)G,    U = NS(μM + (1−μ)G),    W ← (1 − ηλ)W − η · 0.2 √max(rows, columns) · U

NS is five quintic Newton-Schulz steps, which bring the singular values of a matrix near 1. The factor
0.2 √max(rows, columns) gives updates the root mean square of AdamW's, so that one learning rate and one decay
serve both. Embeddings, heads and vectors are updated by AdamW.

Jordan et al., 2024 (Muon); Liu et al., 2025, arXiv:2502.16982 (the factor).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from assay.optim.base import MatrixOptimizer, Share
from assay.optim.portions import portions
from assay.optim.registries import optimizers

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    matrices: Float[Tensor, "batch rows columns"], steps: int = 5
) -> Float[Tensor, "batch rows columns"]:
    """Newton-Schulz: X ← aX + (bXXᵀ + c(XXᵀ)²)X from X = G/‖G‖, in bfloat16, on the shorter side."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


@optimizers.register("muon")
class Muon(MatrixOptimizer):
    """Groups with role ``matrix`` take Muon's step, all others AdamW's; ``options`` are those of ``MatrixOptimizer``.

    Matrices of one shape go as a batch.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: Share = 0.95,
        nesterov: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, {"momentum": momentum, "nesterov": nesterov}, **options)

    def update_matrices(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, p in enumerate(parameters):
            by_shape[tuple(p.shape)].append(index)
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        for shape, members in by_shape.items():
            for some in portions([parameters[i] for i in members]):
                orthogonal = orthogonalize(torch.stack([updates[i] for i in members[some]]).flatten(2))
                scale = 0.2 * max(orthogonal.shape[-2:]) ** 0.5
                steps = [update.view(shape) for update in orthogonal]
                torch._foreach_add_([parameters[i] for i in members[some]], steps, alpha=-lr * scale)
