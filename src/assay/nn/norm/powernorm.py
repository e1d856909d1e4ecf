"""PowerNorm: each feature is divided by its running quadratic mean over all tokens, with an approximate backward.

    x ← x / √(mean of x² over the features of a group + ε)        layer scale, for each token by itself
    y = γ ⊙ z + β,    z = x / √(φ + ε)                            φ from before the step
    φ ← α φ + (1 − α) m,    m = mean of x² over all tokens        no mean is subtracted

For the first ``warmup`` steps z = x / √(m + ε), and φ also averages their m. The gradient would need the mean over
tokens of d ⊙ z, with d = γ ⊙ ∂L/∂y; a running estimate ν takes its place:

    ∂L/∂x = a / √(φ + ε),    a = d − ν ⊙ z,    ν ← ν + (1 − α) · mean of a ⊙ z over all tokens

which is ν (1 − (1 − α) mean(z²)) + (1 − α) mean(d ⊙ z). Shen, Yao, Gholami, Mahoney, Keutzer, 2020, arXiv:2003.07845.
In the published code the last division is by the batch's √(m + ε), after the warm-up too.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.norm import norms
from assay.nn.norm.rms_norm import rms_normalize


class PowerFunction(torch.autograd.Function):
    """x ⊙ ``scale``, with the gradient (d − ν ⊙ z) ⊙ ``scale``; each backward moves ν by ``rate``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch hidden"],
        scale: Float[Tensor, " hidden"],
        nu: Float[Tensor, " hidden"],
        rate: float,
    ) -> Float[Tensor, "*batch hidden"]:
        z = x * scale
        ctx.save_for_backward(z, scale)
        ctx.nu, ctx.rate = nu, rate
        return z

    @staticmethod
    def backward(ctx: Any, d: Float[Tensor, "*batch hidden"]) -> tuple[Tensor | None, ...]:
        z, scale = ctx.saved_tensors
        a = d - ctx.nu * z
        ctx.nu.add_((a * z).flatten(0, -2).mean(0), alpha=ctx.rate)
        return a * scale, None, None, None


@norms.register("powernorm")
class PowerNorm(nn.Module):
    """γ and β start at 1 and 0. ``groups`` are those of the layer scale, 0 leaves it out.

    Steps are forward passes in training mode, so that micro-batches count one by one; each process of a distributed
    run has statistics of its own. The paper warms up as long as the learning rate does, 8,000 steps for IWSLT14.

    Evaluation divides by √(φ + ε), so that no token sees another; in training a token is touched by later ones in the
    warm-up alone, through m. Raises ``UserError`` if ``groups`` does not divide ``hidden_size``.
    """

    second_moment: Tensor
    gradient_mean: Tensor
    steps: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        groups: Annotated[int, Field(ge=0)] = 1,
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.9,
        warmup: Annotated[int, Field(ge=0)] = 100,
        eps: Annotated[float, Field(ge=0)] = 1e-5,
    ) -> None:
        super().__init__()
        if groups and hidden_size % groups:
            raise UserError(
                f"norm 'powernorm': groups={groups} does not divide {hidden_size}; it must be a divisor, or 0"
            )
        self.groups, self.alpha, self.warmup, self.eps = groups, alpha, warmup, eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.register_buffer("second_moment", torch.ones(hidden_size))
        self.register_buffer("gradient_mean", torch.zeros(hidden_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        z = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.groups:
            z = rms_normalize(z.unflatten(-1, (self.groups, -1)), self.eps).flatten(-2)
        if self.training:
            z = PowerFunction.apply(z, self._follow(z), self.gradient_mean, 1 - self.alpha)
        else:
            z = z * torch.rsqrt(self.second_moment + self.eps)
        return (self.weight * z + self.bias).to(x.dtype)

    @torch.no_grad()
    def _follow(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, " hidden"]:
        """What this step multiplies x by; moves φ."""
        batch = x.square().flatten(0, -2).mean(0)
        self.steps.add_(1)
        scale = torch.rsqrt(torch.where(self.steps <= self.warmup, batch, self.second_moment) + self.eps)
        averaged = self.second_moment + (batch - self.second_moment) / self.steps
        started = torch.where(self.steps < self.warmup, averaged, self.second_moment)
        self.second_moment.copy_(torch.lerp(started, batch, 1 - self.alpha))
        return scale
