"""The core maps of the ball with derivatives by hand, which keep their inputs and nothing else for the backward pass.

exp₀ and log₀ scale their argument by a function s of its length n; with t the derivative of n s(n),

    ∂⟨g, s(|v|) v⟩/∂v = s g + (t − s) / n² · ⟨g, v⟩ v,    exp₀: t = 1 − tanh²(√c n),    log₀: t = 1 / (1 − c n²)

(t = 0 beyond the precision's margin). With z = x ⊕ y, its denominator D, a = 1 + 2c⟨x, y⟩ + c|y|² and b = 1 − c|x|²,

    ∂⟨g, z⟩/∂x = (a g + 2c ⟨g, x − z⟩ y − 2c (⟨g, y⟩ + c|y|² ⟨g, z⟩) x) / D
    ∂⟨g, z⟩/∂y = (b g + 2c ⟨g, x − z⟩ x + 2c (⟨g, x⟩ − c|x|² ⟨g, z⟩) y) / D

``assay.nn.residual.poincare.ball`` defines the same maps in plain PyTorch, to be differentiated as such.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from assay.nn.residual.poincare import ball


def exp0(v: Float[Tensor, "*batch dim"], c: float) -> Float[Tensor, "*batch dim"]:
    """``ball.exp0``."""
    return _Exp0.apply(v, c)


def log0(y: Float[Tensor, "*batch dim"], c: float) -> Float[Tensor, "*batch dim"]:
    """``ball.log0``."""
    return _Log0.apply(y, c)


def mobius_add(x: Float[Tensor, "*#batch dim"], y: Float[Tensor, "*#batch dim"], c: float) -> Float[Tensor, "*b dim"]:
    """``ball.mobius_add``."""
    return _MobiusAdd.apply(x, y, c)


class _Exp0(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, c: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.c = c
        return ball.exp0(v, c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        n = ball.length(v)
        angle = ctx.c**0.5 * n
        tanh = angle.tanh()
        limit = 1 - ball.margin(v)
        slope = (1 - tanh * tanh) * (tanh < limit)
        return _radial(gradient, v, n, tanh.clamp(max=limit) / angle, slope), None


class _Log0(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, c: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.c = c
        return ball.log0(y, c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        n = ball.length(y)
        radius = ctx.c**0.5 * n
        limit = 1 - ball.margin(y)
        within = radius.clamp(max=limit)
        slope = (radius < limit) / (1 - within * within)
        return _radial(gradient, y, n, within.atanh() / radius, slope), None


def _radial(gradient: Tensor, v: Tensor, n: Tensor, scale: Tensor, slope: Tensor) -> Tensor:
    return scale * gradient + (slope - scale) / (n * n).clamp_min(1e-30) * _dot(gradient, v) * v


class _MobiusAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, c: float) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.c = c
        return ball.mobius_add(x, y, c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y = ctx.saved_tensors
        c = ctx.c
        x2, y2, xy, gx, gy = _dot(x, x), _dot(y, y), _dot(x, y), _dot(gradient, x), _dot(gradient, y)
        denominator = 1 + 2 * c * xy + c * c * x2 * y2
        a, b = 1 + 2 * c * xy + c * y2, 1 - c * x2
        gz = (a * gx + b * gy) / denominator
        across = 2 * c * (gx - gz)
        of_x = (a * gradient + across * y - 2 * c * (gy + c * y2 * gz) * x) / denominator
        of_y = (b * gradient + across * x + 2 * c * (gx - c * x2 * gz) * y) / denominator
        return of_x.sum_to_size(x.shape), of_y.sum_to_size(y.shape), None


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)
