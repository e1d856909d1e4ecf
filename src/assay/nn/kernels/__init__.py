"""Fused Triton kernels beside the plain functions that define what they compute.

A plain function marked ``@fused`` has a kernel of its name here, one file each; ``assay.nn.kernels.NAME`` is
imported, and triton with it, when a call first goes to the kernel. Without triton or a GPU all is plain.

Kernels calculate in float32, write no intermediate to memory, and have no atomics: the gradient of a gain is summed
over the rows of each program, then over the programs, in a fixed order.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

P = ParamSpec("P")

SMALLEST = 2**20
"""Features in all from which a kernel is expected to win. What it saves is passes over memory: some 100 bytes per
feature, forward and backward. With fewer features those take less time than starting the operations does."""

WIDEST = 2**13
"""Features of a row up to which a program can hold the row, its gradient and all sums in registers."""

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


def fused(plain: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """``plain``, or the kernel of its name where that is expected to be faster."""

    @functools.wraps(plain)
    def call(*arguments: P.args, **options: P.kwargs) -> Tensor:
        tensors = [value for value in (*arguments, *options.values()) if isinstance(value, Tensor)]
        return (_kernel(plain.__name__) if expected_to_win(*tensors) else plain)(*arguments, **options)

    return call


def expected_to_win(x: Tensor, *others: Tensor) -> bool:
    """Whether a kernel would be faster at normalising or gating the rows of ``x``, and can.

    Not while compiling: torch.compile makes one kernel of the plain function, too, and joins it with its neighbours.
    """
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return False
    return (
        x.numel() >= SMALLEST
        and x.shape[-1] <= WIDEST
        and all(_ordinary(tensor) and tensor.device == x.device for tensor in (x, *others))
        and x.device.index == torch.cuda.current_device()
        and _runs_on(x.device.index)
    )


def _ordinary(tensor: Tensor) -> bool:
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.dtype in DTYPES and not transformed and not is_traceable_wrapper_subclass(tensor)


@functools.cache
def _runs_on(device: int) -> bool:
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _kernel(name: str) -> Callable[..., Tensor]:
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)
