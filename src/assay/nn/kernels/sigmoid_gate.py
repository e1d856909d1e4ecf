"""A sigmoid gate in one pass forward and one backward.

    y  = x ⊙ σ(z)
    dx = dy ⊙ σ(z)
    dz = σ(z) (1 − σ(z)) ⊙ (dy ⊙ x),    summed over the features if they share their gate

The definition is ``assay.nn.attention.gated_attention.sigmoid_gate``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.library import triton_op, wrap_triton

from assay.nn.attention import gated_attention as definition
from assay.nn.kernels.tiles import Tiles, rows_of


def sigmoid_gate(x: Float[Tensor, "*batch size"], z: Float[Tensor, "*#batch gates"]) -> Float[Tensor, "*batch size"]:
    """x ⊙ σ(z), with a gate for each feature or one for each row, as the plain function."""
    return forward(x, z.expand(*x.shape[:-1], z.shape[-1]))


@triton_op("assay::sigmoid_gate", mutates_args={})
def forward(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    matrix, logits = rows_of(x), rows_of(z)
    rows, size = matrix.shape
    y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, z.dtype))
    tiles = Tiles.of(rows, size)
    wrap_triton(forward_kernel)[(tiles.count,)](
        matrix, logits, y, rows, size, matrix.stride(0), logits.stride(0),
        EACH=z.shape[-1] == size, HEIGHT=tiles.height, WIDTH=tiles.width, num_warps=tiles.warps,
    )  # fmt: skip
    return y


@triton_op("assay::sigmoid_gate_backward", mutates_args={})
def backward(dy: torch.Tensor, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """dx and dz."""
    above, matrix, logits = rows_of(dy), rows_of(x), rows_of(z)
    rows, size = matrix.shape
    dx, dz = x.new_empty(x.shape), z.new_empty(z.shape)
    tiles = Tiles.of(rows, size)
    wrap_triton(backward_kernel)[(tiles.count,)](
        above, matrix, logits, dx, dz, rows, size, above.stride(0), matrix.stride(0), logits.stride(0),
        EACH=z.shape[-1] == size, HEIGHT=tiles.height, WIDTH=tiles.width, num_warps=tiles.warps,
    )  # fmt: skip
    return dx, dz


def save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    """By the kernel, or by the definition where the gradient itself will be differentiated."""
    if torch.is_grad_enabled():
        return torch.func.vjp(definition.sigmoid_gate, *ctx.saved_tensors)[1](dy)
    return backward(dy, *ctx.saved_tensors)


forward.register_autograd(differentiate, setup_context=save)


@triton.jit
def forward_kernel(
    x, z, y, rows, size, x_stride, z_stride, EACH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    column = tl.arange(0, WIDTH)[None, :]
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None].to(tl.int64)
    inside = (row < rows) & (column < size)
    wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if EACH:
        logit = tl.load(z + row * z_stride + column, mask=inside, other=0.0)
    else:
        logit = tl.load(z + row * z_stride, mask=row < rows, other=0.0)
    gate = tl.sigmoid(logit.to(tl.float32)).to(z.dtype.element_ty).to(tl.float32)
    tl.store(y + row * size + column, (wide * gate).to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dy, x, z, dx, dz, rows, size, dy_stride, x_stride, z_stride,
    EACH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDTH)[None, :]
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None].to(tl.int64)
    inside = (row < rows) & (column < size)
    above = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
    wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if EACH:
        logit = tl.load(z + row * z_stride + column, mask=inside, other=0.0).to(tl.float32)
    else:
        logit = tl.load(z + row * z_stride, mask=row < rows, other=0.0).to(tl.float32)
    gate = tl.sigmoid(logit)
    inward = above * gate.to(z.dtype.element_ty).to(tl.float32)
    tl.store(dx + row * size + column, inward.to(dx.dtype.element_ty), mask=inside)
    slope = gate * (1.0 - gate)
    if EACH:
        tl.store(dz + row * size + column, (slope * above * wide).to(dz.dtype.element_ty), mask=inside)
    else:
        total = slope * tl.sum(above * wide, 1, keep_dims=True)
        tl.store(dz + row, total.to(dz.dtype.element_ty), mask=row < rows)
