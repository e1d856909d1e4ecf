"""RMSNorm in one pass forward and one backward.

    y  = γ ⊙ u,                                u = r x,   r = 1 / √(mean(x²) + ε)
    dx = r (g − u mean(g ⊙ u)),                g = dy ⊙ γ
    dγ = Σ_rows dy ⊙ u

The definition is ``assay.nn.norm.rms_norm.rms_norm``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.library import triton_op, wrap_triton

from assay.nn.kernels.tiles import Tiles, rows_of
from assay.nn.norm import rms_norm as definition


def rms_norm(
    x: Float[Tensor, "*batch hidden"], weight: Float[Tensor, " hidden"], eps: float
) -> Float[Tensor, "*batch hidden"]:
    """γ ⊙ x / √(mean(x²) + eps), as the plain function."""
    return forward(x, weight, eps)[0]


@triton_op("assay::rms_norm", mutates_args={})
def forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """y and r."""
    matrix = rows_of(x)
    rows, hidden = matrix.shape
    y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
    scale = x.new_empty(rows, dtype=torch.float32)
    tiles = Tiles.of(rows, hidden)
    wrap_triton(forward_kernel)[(tiles.count,)](
        matrix, weight.contiguous(), y, scale, rows, hidden, matrix.stride(0), eps,
        HEIGHT=tiles.height, WIDTH=tiles.width, num_warps=tiles.warps,
    )  # fmt: skip
    return y, scale


@triton_op("assay::rms_norm_backward", mutates_args={})
def backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx and dγ."""
    above, matrix = rows_of(dy), rows_of(x)
    rows, hidden = matrix.shape
    dx = x.new_empty(x.shape)
    tiles = Tiles.of(rows, hidden)
    programs = tiles.programs(x.device)
    sums = x.new_empty((programs, hidden), dtype=torch.float32)
    wrap_triton(backward_kernel)[(programs,)](
        above, matrix, weight.contiguous(), scale, dx, sums, rows, hidden, above.stride(0), matrix.stride(0),
        HEIGHT=tiles.height, WIDTH=tiles.width, num_warps=tiles.warps,
    )  # fmt: skip
    return dx, sums.sum(0).to(weight.dtype)


def save(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight, output[1])


def differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    """By the kernel, or by the definition where the gradient itself will be differentiated."""
    x, weight, scale = ctx.saved_tensors
    if torch.is_grad_enabled():
        plain = functools.partial(definition.rms_norm, eps=ctx.eps)
        return *torch.func.vjp(plain, x, weight)[1](dy), None
    return *backward(dy, x, weight, scale), None


forward.register_autograd(differentiate, setup_context=save)


@triton.jit
def forward_kernel(x, weight, y, scale, rows, hidden, x_stride, eps, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)[None, :]
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None].to(tl.int64)
    inside = (row < rows) & (column < hidden)
    wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(wide * wide, 1, keep_dims=True) / hidden + eps)
    unit = (wide * r).to(x.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight + column, mask=column < hidden, other=0.0).to(tl.float32)
    tl.store(y + row * hidden + column, (gain * unit).to(y.dtype.element_ty), mask=inside)
    tl.store(scale + row, r, mask=row < rows)


@triton.jit
def backward_kernel(
    dy, x, weight, scale, dx, sums, rows, hidden, dy_stride, x_stride, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    column = tl.arange(0, WIDTH)[None, :]
    gain = tl.load(weight + column, mask=column < hidden, other=0.0).to(tl.float32)
    total = tl.zeros([HEIGHT, WIDTH], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, HEIGHT), tl.num_programs(0)):
        row = tile * HEIGHT + tl.arange(0, HEIGHT)[:, None].to(tl.int64)
        inside = (row < rows) & (column < hidden)
        above = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(scale + row, mask=row < rows, other=0.0)
        unit = wide * r
        g = above * gain
        inward = r * (g - unit * (tl.sum(g * unit, 1, keep_dims=True) / hidden))
        tl.store(dx + row * hidden + column, inward.to(dx.dtype.element_ty), mask=inside)
        total += above * unit.to(x.dtype.element_ty).to(tl.float32)
    tl.store(sums + tl.program_id(0) * hidden + column, tl.sum(total, 0, keep_dims=True), mask=column < hidden)
