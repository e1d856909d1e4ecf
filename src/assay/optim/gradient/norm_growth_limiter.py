"""Norm-growth limiter: no gradient is much larger than the one before it.

    g_t ← g_t · min(1, γ ‖g_{t−1}‖ / ‖g_t‖)

for each tensor by itself, where ‖g_{t−1}‖ is the norm after limiting. A first gradient, and one after a gradient of
zero, is not limited.

Chen, Feng, Li, Lai, Yue, Yuan, Wang, 2024, arXiv:2410.01623.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from assay.optim.registries import gradients


def growth_factors(
    norms: Sequence[Tensor], before: Float[Tensor, " count"], gamma: float
) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"]]:
    """What brings ``norms`` to at most ``gamma`` times those ``before``, and what they are then."""
    found = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).float()
    factors = torch.where(before > 0, (gamma * before / found).clamp(max=1.0), 1.0)
    return factors, found * factors


def limit_growth(tensors: list[Tensor], before: Float[Tensor, " count"], gamma: float) -> Float[Tensor, " count"]:
    """Scale ``tensors`` in place to at most ``gamma`` times the norms ``before``; return their norms after that."""
    precision = reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, torch.float32)
    factors, norms = growth_factors(torch._foreach_norm(tensors, dtype=precision), before, gamma)
    torch._foreach_mul_(tensors, list(factors.unbind()))
    return norms


@gradients.register("norm-growth-limiter")
class NormGrowthLimiter:
    """``gamma`` is γ. The norms of the parameters of ``model`` are kept from step to step."""

    def __init__(self, model: nn.Module, *, gamma: Annotated[float, Field(ge=1)] = 1.01) -> None:
        parameters = list(model.parameters())
        self.gamma = gamma
        self.places = {id(parameter): place for place, parameter in enumerate(parameters)}
        self.norms = torch.zeros(len(parameters), device=parameters[0].device)

    @torch.no_grad()
    def __call__(self, parameters: Sequence[nn.Parameter], step: int) -> None:
        places = [self.places[id(parameter)] for parameter in parameters]
        found = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.norms[places] = limit_growth(found, self.norms[places], self.gamma)

    def state_dict(self) -> dict[str, Tensor]:
        return {"norms": self.norms.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self.norms.copy_(state["norms"])
