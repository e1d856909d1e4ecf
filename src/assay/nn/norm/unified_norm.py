"""Unified Normalization: statistics over the batch, smoothed over the last steps, that fold away at inference.

With m the mean of x² over all tokens of the batch, per feature (no mean is subtracted), in training

    y = γ ⊙ z + β,    z = x / √(v + ε),    v = geometric mean of the last M values of m

and for inference, where y = γ ⊙ x / √(φ + ε) + β is an affine map that the linear maps behind it take in,

    φ ← α φ + (1 − α) v

The gradient is smoothed like the activations. With D = r γ ⊙ ∂L/∂y, where r = √(v + ε) / √(φ + ε) within [1/5, 5] (φ
from before the step) brings the gradient to the scale of inference, and g = mean of D ⊙ z over all tokens,

    ∂L/∂x = (D − e ⊙ z) / √(v + ε),    e ← α e + (1 − α) · arithmetic mean of the last M values of g
    ∂L/∂γ = Σ r z ⊙ ∂L/∂y

In the first ``warmup`` steps v = m, r = 1 and e follows g itself. M = 1 is no smoothing: v = m and e = g, the exact
gradient. A batch is an outlier if in any feature the arithmetic mean of the window exceeds the geometric one by more
than M times the variance of √m over the window of before, all features together. With ``outlier_filtration`` it is
normalised by itself, with its exact gradient, and leaves no trace: the windows get φ and e in its place.

Yang, Zhang, Lan, Yang, Li, Tan, Xiao, Pu, 2022, arXiv:2208.01313. In the published code an outlier moves φ and e all
the same, and r = 1 for 1,000 steps at least.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.norm import norms


def slid(window: Float[Tensor, "window hidden"], value: Float[Tensor, " hidden"]) -> Float[Tensor, "window hidden"]:
    """The window one step later: without its first value, with ``value`` as its last."""
    return torch.cat([window[1:], value[None]])


class UnifiedFunction(torch.autograd.Function):
    """γ ⊙ x ⊙ ``scale`` with the smoothed gradient; each backward moves ``gradients``, the window of g, and e.

    ``compensation`` is r; ``smooth`` says whether the windows count by now.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch hidden"],
        weight: Float[Tensor, " hidden"],
        scale: Float[Tensor, " hidden"],
        compensation: Float[Tensor, " hidden"],
        smooth: Bool[Tensor, ""],
        outlier: Bool[Tensor, ""],
        gradients: Float[Tensor, "window hidden"],
        e: Float[Tensor, " hidden"],
        alpha: float,
    ) -> Float[Tensor, "*batch hidden"]:
        z = x * scale
        ctx.save_for_backward(z, weight, scale, compensation, smooth, outlier)
        ctx.gradients, ctx.e, ctx.alpha = gradients, e, alpha
        return weight * z

    @staticmethod
    def backward(ctx: Any, dy: Float[Tensor, "*batch hidden"]) -> tuple[Tensor | None, ...]:
        z, weight, scale, compensation, smooth, outlier = ctx.saved_tensors
        d = dy * (weight * compensation)
        g = (d * z).flatten(0, -2).mean(0)
        ctx.gradients.copy_(slid(ctx.gradients, torch.where(outlier, ctx.e, g)))
        mean = torch.where(smooth, ctx.gradients.mean(0), g)
        ctx.e.copy_(torch.where(outlier, ctx.e, torch.lerp(mean, ctx.e, ctx.alpha)))
        subtracted = g if len(ctx.gradients) == 1 else torch.where(outlier, g, ctx.e)
        return (d - subtracted * z) * scale, compensation * (dy * z).flatten(0, -2).sum(0), *[None] * 7


@norms.register("unified-norm")
class UnifiedNorm(nn.Module):
    """γ and β start at 1 and 0; ``window`` is M.

    The paper's warm-up is 4,000 of 100,000 steps; in 100 steps φ, which starts at 1, has forgotten its start.
    Filtration is on for images and off for text in the paper. Steps are forward passes in training mode, so that
    micro-batches count one by one; each process of a distributed run has statistics of its own.

    Evaluation divides by √(φ + ε), so that no token sees another. In training a token is touched by later ones of its
    batch, but only through m, one mean over all of them.
    """

    second_moment: Tensor
    moment_window: Tensor
    gradient_mean: Tensor
    gradient_window: Tensor
    steps: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        window: Annotated[int, Field(gt=0)] = 4,
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.9,
        warmup: Annotated[int, Field(ge=0)] = 100,
        outlier_filtration: bool = False,
        eps: Annotated[float, Field(ge=0)] = 1e-5,
    ) -> None:
        super().__init__()
        self.alpha, self.warmup, self.outlier_filtration, self.eps = alpha, warmup, outlier_filtration, eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.register_buffer("second_moment", torch.ones(hidden_size))
        self.register_buffer("moment_window", torch.zeros(window, hidden_size))
        self.register_buffer("gradient_mean", torch.zeros(hidden_size))
        self.register_buffer("gradient_window", torch.zeros(window, hidden_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if not self.training:
            return (self.inference_gain() * wide + self.bias).to(x.dtype)
        y = UnifiedFunction.apply(
            wide, self.weight, *self._follow(wide), self.gradient_window, self.gradient_mean, self.alpha
        )
        return (y + self.bias).to(x.dtype)

    def inference_gain(self) -> Float[Tensor, " hidden"]:
        """γ / √(φ + ε): what evaluation multiplies x by."""
        return self.weight * torch.rsqrt(self.second_moment + self.eps)

    @torch.no_grad()
    def fold_into(self, linears: Iterable[nn.Linear]) -> None:
        """Make ``linears``, which read this norm's result in evaluation, give the same when they read its input.

            W ← W diag(γ / √(φ + ε)),    b ← b + W β    (W from before; b is made where there is none)

        Whoever calls this takes the norm out. Raises ``UserError`` for a map of another number of features.
        """
        for linear in linears:
            size = len(self.weight)
            if linear.in_features != size:
                raise UserError(f"a norm of {size} features does not fold into a map that takes {linear.in_features}")
            shift = linear.weight @ self.bias.to(linear.weight.dtype)
            if linear.bias is None:
                linear.bias = nn.Parameter(shift)
            else:
                linear.bias.add_(shift)
            linear.weight.mul_(self.inference_gain())

    @torch.no_grad()
    def _follow(self, x: Float[Tensor, "*batch hidden"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """1 / √(v + ε), r, whether the windows count by now, and whether the batch is an outlier; moves φ."""
        window = len(self.moment_window)
        self.steps.add_(1)
        settled = (self.steps > window) & (self.steps >= self.warmup) & (window > 1)
        batch = x.square().flatten(0, -2).mean(0)
        moments = slid(self.moment_window, batch)
        outlier = torch.zeros_like(settled)
        if self.outlier_filtration and window > 1:
            spread = self.moment_window.sqrt().var()
            outlier = settled & (moments.mean(0) - geometric_mean(moments) > window * spread).any()
            moments = slid(self.moment_window, torch.where(outlier, self.second_moment, batch))
        self.moment_window.copy_(moments)
        smooth = settled & ~outlier
        v = torch.where(smooth, geometric_mean(moments), batch)
        r = ((v + self.eps) / (self.second_moment + self.eps)).sqrt().clamp(1 / 5, 5)
        r = torch.where(smooth, r, torch.ones_like(r))
        self.second_moment.copy_(
            torch.where(outlier, self.second_moment, torch.lerp(v, self.second_moment, self.alpha))
        )
        return torch.rsqrt(v + self.eps), r, smooth, outlier


def geometric_mean(window: Float[Tensor, "window hidden"]) -> Float[Tensor, " hidden"]:
    """Over the steps of a window, through logarithms."""
    return window.log().mean(0).exp()
