"""GaLore: AdamW whose moments live in a low-rank subspace of the gradient.

    R = G B,    m ← β₁m + (1−β₁)R,    v ← β₂v + (1−β₂)R²
    W ← W − η √(1−β₂ᵗ)/(1−β₁ᵗ) · α · m/(√v + ε) Bᵀ,    then W ← (1 − ηλ)W

B holds the r leading singular vectors of the shorter side of G; it is taken anew from the gradient of the moment on a
parameter's steps 1, 1 + gap, 1 + 2 gap, ..., and the moments stay as they are. Of a matrix with sides a ≥ b the state
has (2a + b) r numbers, where AdamW's has 2ab. Embeddings, heads and vectors are updated by AdamW.

Zhao, Zhang, Chen, Wang, Anandkumar, Tian, 2024, arXiv:2403.03507.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from assay.optim.base import MatrixOptimizer
from assay.optim.projection import as_parameter, as_tall, leading_directions
from assay.optim.registries import optimizers


@optimizers.register("galore")
class GaLore(MatrixOptimizer):
    """``rank`` is r, at most a matrix's shorter side; ``update_proj_gap`` the steps that B is kept; ``scale`` is α.

    Groups with role ``matrix`` are projected, all others take AdamW's step.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        own: Mapping[str, Any] | None = None,
        *,
        rank: Annotated[int, Field(gt=0)] = 64,
        update_proj_gap: Annotated[int, Field(gt=0)] = 200,
        scale: Annotated[float, Field(gt=0)] = 0.25,
        **options: Any,
    ) -> None:
        projection = {"rank": rank, "update_proj_gap": update_proj_gap, "scale": scale}
        super().__init__(params, lr, {**projection, **(own or {})}, **options)

    def update_matrices(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        steps = [self._begin(group, p, gradient) for p, gradient in zip(parameters, gradients, strict=True)]
        tall = [as_tall(gradient) for gradient in gradients]
        bases = [self.state[p]["basis"] for p in parameters]
        projected = [gradient @ basis for gradient, basis in zip(tall, bases, strict=True)]
        directions = self._adam(group, parameters, projected)
        by_row = self.add_outside(group, parameters, tall, projected, directions)
        beta1, beta2 = group["betas"]
        kept = 1 - group["lr"] * group["weight_decay"]
        for i, (p, step) in enumerate(zip(parameters, steps, strict=True)):
            rate = -kept * group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
            weight = as_tall(p)
            weight.addmm_(directions[i], bases[i].mT, beta=kept, alpha=rate * group["scale"])
            if by_row is not None:
                weight.addcmul_(tall[i], by_row[i], value=rate)
            if p.ndim > 2:
                p.copy_(as_parameter(weight, p))

    def add_outside(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Float[Tensor, "long short"]],
        projected: list[Float[Tensor, "long rank"]],
        directions: list[Float[Tensor, "long rank"]],
    ) -> list[Float[Tensor, "long 1"]] | None:
        """Factors by which rows of ``gradients`` are subtracted too; ``directions`` may change to go with them."""
        return None

    def _begin(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> int:
        """Count the parameter's own step, on the CPU, and renew its basis where that is due."""
        state = self.state[parameter]
        done = int(state["step"]) if state else 0
        if done % group["update_proj_gap"] == 0:
            state["basis"] = leading_directions(gradient, group["rank"])
        if not done:
            state["exp_avg"] = torch.zeros_like(as_tall(gradient) @ state["basis"])
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
        state["step"] = torch.tensor(done + 1.0)
        return done + 1

    def _adam(self, group: dict[str, Any], parameters: list[Tensor], projected: list[Tensor]) -> list[Tensor]:
        beta1, beta2 = group["betas"]
        first = [self.state[p]["exp_avg"] for p in parameters]
        second = [self.state[p]["exp_avg_sq"] for p in parameters]
        torch._foreach_lerp_(first, projected, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, projected, projected, 1 - beta2)
        directions = list(torch._foreach_sqrt(second))
        torch._foreach_add_(directions, group["eps"])
        torch._foreach_reciprocal_(directions)
        torch._foreach_mul_(directions, first)
        return directions
