"""Fira: GaLore, and the part of the gradient that its subspace leaves out, scaled as Adam scaled what is inside.

    N = m/(√v + ε),    φ_i = ‖N_i‖ / ‖R_i‖,    S = φ ⊙ (G − α R Bᵀ),    S ← S · min(1, γ ‖S_before‖ / ‖S‖)
    W ← W − η √(1−β₂ᵗ)/(1−β₁ᵗ) · (α N Bᵀ + S),    then W ← (1 − ηλ)W

R, m, v and B are GaLore's. There is one factor φ_i for each place i of the matrix's longer side, from the norms over
the rank. The last line of S is the norm-growth limiter, for which one number is kept beside GaLore's state.

Chen, Feng, Li, Lai, Yue, Yuan, Wang, 2024, arXiv:2410.01623.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from assay.optim.galore import GaLore
from assay.optim.gradient.norm_growth_limiter import growth_factors
from assay.optim.registries import optimizers

TINY = 1e-8
ROUNDING = 16
"""Times the precision: a share of a row's square that is smaller is what rounding leaves of a difference of 0."""


@optimizers.register("fira")
class Fira(GaLore):
    """``gamma`` is the limiter's γ; a very large one turns it off. The rest is as for ``GaLore``."""

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        gamma: Annotated[float, Field(ge=1)] = 1.01,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, {"gamma": gamma}, **options)

    def add_outside(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        projected: list[Tensor],
        directions: list[Tensor],
    ) -> list[Tensor]:
        """S is φ ⊙ G less a part within the subspace, so it is never formed; its norm comes from those of the two."""
        alpha = group["scale"]
        by_row, norms = [], []
        for gradient, low, direction in zip(gradients, projected, directions, strict=True):
            inside = low.norm(dim=1, keepdim=True)
            factor = direction.norm(dim=1, keepdim=True) / (inside + TINY)
            whole = gradient.square().sum(1, keepdim=True)
            outside = whole - inside.square()
            outside = torch.where(outside > ROUNDING * torch.finfo(gradient.dtype).eps * whole, outside, 0.0)
            outside += ((1 - alpha) * inside).square()
            norms.append((factor.square() * outside).sum().sqrt())
            by_row.append(factor)
        torch._foreach_mul_(by_row, self._limits(group["gamma"], parameters, norms))
        torch._foreach_addcmul_(directions, projected, by_row, -1.0)
        return by_row

    def _limits(self, gamma: float, parameters: list[Tensor], norms: list[Tensor]) -> list[Tensor]:
        start = torch.zeros((), device=parameters[0].device)
        before = torch.stack([self.state[p].get("residual_norm", start) for p in parameters])
        factors, after = growth_factors(norms, before, gamma)
        for p, norm in zip(parameters, after.unbind(), strict=True):
            self.state[p]["residual_norm"] = norm.clone()
        return list(factors.unbind())
