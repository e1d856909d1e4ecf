"""SeeDNorm in one pass forward and one backward.

    y  = (γ + α s_h) ⊙ u,    u = r x,    r = 1 / √(mean(x²) + ε),    s_h = tanh⟨x_h, β_h⟩
    dx = r (g − u mean(g ⊙ u)) + t_h β,    g = dy ⊙ (γ + α s_h),    t_h = (1 − s_h²) ⟨dy_h, α_h ⊙ u_h⟩
    dγ = Σ_rows dy ⊙ u,    dα = Σ_rows s_h dy ⊙ u,    dβ = Σ_rows t_h x

for the features of each head h. The definition is ``assay.nn.norm.seednorm.seednorm``.
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

from assay.nn.kernels.tiles import Tiles, power_of_two, rows_of
from assay.nn.norm import seednorm as definition


def seednorm(
    x: Float[Tensor, "*batch hidden"],
    weight: Float[Tensor, " hidden"],
    alpha: Float[Tensor, " hidden"],
    beta: Float[Tensor, " hidden"],
    num_heads: int,
    eps: float,
) -> Float[Tensor, "*batch hidden"]:
    """(γ + α tanh⟨x_h, β_h⟩) ⊙ x / √(mean(x²) + eps), as the plain function."""
    return forward(x, weight, alpha, beta, num_heads, eps)[0]


@triton_op("assay::seednorm", mutates_args={})
def forward(
    x: torch.Tensor, weight: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor, num_heads: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, r and s."""
    matrix = rows_of(x)
    rows, hidden = matrix.shape
    y = x.new_empty(x.shape)
    scale = x.new_empty(rows, dtype=torch.float32)
    gate = x.new_empty((rows, num_heads), dtype=torch.float32)
    heads, width = power_of_two(num_heads), power_of_two(hidden // num_heads)
    tiles = Tiles.of(rows, heads * width)
    wrap_triton(forward_kernel)[(tiles.count,)](
        matrix, weight.contiguous(), alpha.contiguous(), beta.contiguous(), y, scale, gate,
        rows, num_heads, hidden // num_heads, matrix.stride(0), eps,
        HEIGHT=tiles.height, HEADS=heads, WIDTH=width, num_warps=tiles.warps,
    )  # fmt: skip
    return y, scale, gate


@triton_op("assay::seednorm_backward", mutates_args={})
def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    scale: torch.Tensor,
    gate: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx, dγ, dα and dβ."""
    above, matrix = rows_of(dy), rows_of(x)
    rows, hidden = matrix.shape
    num_heads = gate.shape[1]
    dx = x.new_empty(x.shape)
    heads, width = power_of_two(num_heads), power_of_two(hidden // num_heads)
    tiles = Tiles.of(rows, heads * width)
    programs = tiles.programs(x.device)
    sums = x.new_empty((3, programs, hidden), dtype=torch.float32)
    wrap_triton(backward_kernel)[(programs,)](
        above, matrix, weight.contiguous(), alpha.contiguous(), beta.contiguous(), scale, gate, dx, sums,
        rows, num_heads, hidden // num_heads, above.stride(0), matrix.stride(0),
        HEIGHT=tiles.height, HEADS=heads, WIDTH=width, num_warps=tiles.warps,
    )  # fmt: skip
    dweight, dalpha, dbeta = sums.unbind(0)
    return dx, dweight.sum(0).to(weight.dtype), dalpha.sum(0).to(alpha.dtype), dbeta.sum(0).to(beta.dtype)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.num_heads, ctx.eps = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def differentiate(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """By the kernel, or by the definition where the gradient itself will be differentiated."""
    *tensors, scale, gate = ctx.saved_tensors
    if torch.is_grad_enabled():
        plain = functools.partial(definition.seednorm, num_heads=ctx.num_heads, eps=ctx.eps)
        return *torch.func.vjp(plain, *tensors)[1](dy), None, None
    return *backward(dy, *tensors, scale, gate), None, None


forward.register_autograd(differentiate, setup_context=save)


@triton.jit
def tanh(z):
    """By its series near 0, where the quotient cancels."""
    e = tl.exp(-2.0 * tl.abs(z))
    quotient = tl.where(z < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)
    q = z * z
    series = z * (1.0 + q * (-1.0 / 3 + q * (2.0 / 15 + q * (-17.0 / 315 + q * (62.0 / 2835)))))
    return tl.where(q < 0.0625, series, quotient)


@triton.jit
def forward_kernel(
    x, weight, alpha, beta, y, scale, gate, rows, num_heads, width, x_stride, eps,
    HEIGHT: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    head = tl.arange(0, HEADS)[None, :, None]
    feature = tl.arange(0, WIDTH)[None, None, :]
    hidden = num_heads * width
    column = head * width + feature
    exists = (head < num_heads) & (feature < width)
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None, None].to(tl.int64)
    inside = (row < rows) & exists
    wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    towards = tl.load(beta + column, mask=exists, other=0.0).to(tl.float32)
    s = tanh(tl.sum(wide * towards, 2, keep_dims=True))
    squares = tl.sum(tl.sum(wide * wide, 2, keep_dims=True), 1, keep_dims=True)
    r = tl.rsqrt(squares / hidden + eps)
    static = tl.load(weight + column, mask=exists, other=0.0).to(tl.float32)
    dynamic = tl.load(alpha + column, mask=exists, other=0.0).to(tl.float32)
    result = (static + dynamic * s) * (wide * r)
    tl.store(y + row * hidden + column, result.to(y.dtype.element_ty), mask=inside)
    tl.store(scale + row, r, mask=row < rows)
    tl.store(gate + row * num_heads + head, s, mask=(row < rows) & (head < num_heads))


@triton.jit
def backward_kernel(
    dy, x, weight, alpha, beta, scale, gate, dx, sums, rows, num_heads, width, dy_stride, x_stride,
    HEIGHT: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    head = tl.arange(0, HEADS)[None, :, None]
    feature = tl.arange(0, WIDTH)[None, None, :]
    hidden = num_heads * width
    column = head * width + feature
    exists = (head < num_heads) & (feature < width)
    static = tl.load(weight + column, mask=exists, other=0.0).to(tl.float32)
    dynamic = tl.load(alpha + column, mask=exists, other=0.0).to(tl.float32)
    towards = tl.load(beta + column, mask=exists, other=0.0).to(tl.float32)
    dweight = tl.zeros([HEIGHT, HEADS, WIDTH], tl.float32)
    dalpha = tl.zeros([HEIGHT, HEADS, WIDTH], tl.float32)
    dbeta = tl.zeros([HEIGHT, HEADS, WIDTH], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, HEIGHT), tl.num_programs(0)):
        row = tile * HEIGHT + tl.arange(0, HEIGHT)[:, None, None].to(tl.int64)
        inside = (row < rows) & exists
        above = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(scale + row, mask=row < rows, other=0.0)
        s = tl.load(gate + row * num_heads + head, mask=(row < rows) & (head < num_heads), other=0.0)
        unit = wide * r
        along = above * unit
        t = (1.0 - s * s) * tl.sum(along * dynamic, 2, keep_dims=True)
        g = above * (static + dynamic * s)
        mean = tl.sum(tl.sum(g * unit, 2, keep_dims=True), 1, keep_dims=True) / hidden
        inward = r * (g - unit * mean) + t * towards
        tl.store(dx + row * hidden + column, inward.to(dx.dtype.element_ty), mask=inside)
        dweight += along
        dalpha += along * s
        dbeta += wide * t
    own = sums + tl.program_id(0) * hidden + column
    size = tl.num_programs(0) * hidden
    tl.store(own, tl.sum(dweight, 0, keep_dims=True), mask=exists)
    tl.store(own + size, tl.sum(dalpha, 0, keep_dims=True), mask=exists)
    tl.store(own + 2 * size, tl.sum(dbeta, 0, keep_dims=True), mask=exists)
