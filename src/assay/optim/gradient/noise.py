"""Gradient noise: Gaussian noise on every gradient, less and less of it.

    g_t ← g_t + N(0, σ_t²),    σ_t² = η / (1 + t)^γ

t counts the steps from 0. The noise is drawn once per step, whatever the batch, and alike by all processes.

Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach, Martens, 2015, arXiv:1511.06807.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from assay.optim.registries import Stateless, gradients


@gradients.register("noise")
class GradientNoise(Stateless):
    """``eta`` is η, a variance in squared units of the gradient, and ``gamma`` the power γ of its decay.

    The numbers of a step follow from ``seed`` and the step alone; with η = 0 none are drawn.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        eta: Annotated[float, Field(ge=0)] = 0.01,
        gamma: Annotated[float, Field(ge=0)] = 0.55,
    ) -> None:
        self.seed, self.eta, self.gamma = seed, eta, gamma

    def deviation(self, step: int) -> float:
        """σ at a step, from 0."""
        return math.sqrt(self.eta / (1 + step) ** self.gamma)

    @torch.no_grad()
    def __call__(self, parameters: Sequence[nn.Parameter], step: int) -> None:
        if self.eta == 0 or not parameters:
            return
        generator = torch.Generator(parameters[0].device)
        generator.manual_seed(self.seed * 1_000_003 + step)
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None:
                shape, dtype, device = gradient.shape, gradient.dtype, gradient.device
                noise = torch.randn(shape, generator=generator, dtype=dtype, device=device)
                if isinstance(gradient, DTensor):
                    noise = distribute_tensor(noise, gradient.device_mesh, gradient.placements, src_data_rank=None)
                gradient.add_(noise, alpha=self.deviation(step))
