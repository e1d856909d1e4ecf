"""Poincaré midpoint batch norm: points are moved so that their midpoint is β, and scaled to the variance s.

    m   = mid(x_i),    σ² = mean_i d(x_i, m)²,    β = exp₀(b)
    y_i = exp_β(√(s / σ²) · transport from m to β of log_m(x_i))
        = β ⊕ exp₀(√(s / σ²) · gyr[β, −m] log₀(−m ⊕ x_i))

All pixels of all images are the points; σ² and s are one number for all channels. The midpoint is in closed form,
unlike the Fréchet mean (Lou et al., 2020, arXiv:2003.00335), whose place it takes.
van Spengler, Berkhout, Mettes, 2023, arXiv:2303.14027.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from assay.nn.residual.poincare import ball
from assay.nn.residual.poincare.explicit import exp0, log0, mobius_add


class PoincareBatchNorm(nn.Module):
    """Tangent vectors at the origin in, and out; ``bias`` is b, and ``scale`` √s, which is free to take any sign.

    ``inference`` "running" uses averages of the training batches: the mean on its way along geodesics, the variance
    as usual. "batch" takes the statistics of the batch at hand, as the authors' code does, so that the output for an
    image depends on the others beside it.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self,
        channels: int,
        c: float,
        *,
        inference: Literal["running", "batch"] = "running",
        momentum: Annotated[float, Field(gt=0, le=1)] = 0.1,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.c = c
        self.inference = inference
        self.momentum = momentum
        self.eps = eps
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_variance", torch.ones(()))

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *size"]:
        c = self.c
        points = exp0(x.movedim(1, -1), c)
        of_batch = self.training or self.inference == "batch"
        mean = ball.midpoint(points.flatten(0, -2), c) if of_batch else self.running_mean
        centred = log0(mobius_add(-mean, points, c), c)
        variance = 4 * centred.square().sum(-1).mean() if of_batch else self.running_variance
        if self.training:
            self._follow(mean.detach(), variance.detach())
        place = exp0(self.bias, c)
        axes = torch.eye(len(place), dtype=place.dtype, device=place.device)
        turned = centred @ ball.gyrate(place, -mean, axes, c)
        spread = exp0(self.scale / (variance + self.eps).sqrt() * turned, c)
        return log0(mobius_add(place, spread, c), c).movedim(-1, 1)

    @torch.no_grad()
    def _follow(self, mean: Float[Tensor, " channels"], variance: Float[Tensor, ""]) -> None:
        step = self.momentum * ball.log(self.running_mean, mean, self.c)
        self.running_mean.copy_(ball.exp(self.running_mean, step, self.c))
        self.running_variance.lerp_(variance, self.momentum)
