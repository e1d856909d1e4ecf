"""Calls kernels under Triton's interpreter, for tests in another process that may have imported triton without it.

Reads pickled requests from standard input until it ends, and answers each on standard output.
"""

from __future__ import annotations

import importlib
import pickle
import sys
import traceback
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

import assay.nn.kernels

original_cast = interpreter.InterpreterBuilder.cast_impl


def rounding_cast(self: Any, src: Any, dst_type: Any) -> Any:
    """The interpreter cuts float32 off to bfloat16, where a GPU rounds to the nearest."""
    if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
        return original_cast(self, src, dst_type)
    rounded = torch.from_numpy(src.data.copy()).bfloat16().view(torch.uint16).numpy()
    return interpreter.TensorHandle(rounded, tl.bfloat16)


def call(path: str, tensors: list[Tensor], others: list[Any], towards: Tensor | None, order: int) -> list[Tensor]:
    """The result and, ``towards`` given, its gradients; with order 2 those of their sum of squares, too."""
    module, name = path.split(":")
    y = getattr(importlib.import_module(module), name)(*tensors, *others)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    if towards is None or not wanted:
        return [y.detach()]
    first = torch.autograd.grad(y, wanted, towards, create_graph=order == 2)
    results = [y, *first]
    if order == 2:
        results += torch.autograd.grad(sum(gradient.square().sum() for gradient in first), wanted)
    return [result.detach() for result in results]


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    interpreter.InterpreterBuilder.cast_impl = rounding_cast
    assay.nn.kernels.expected_to_win = lambda *tensors: all(map(assay.nn.kernels._ordinary, tensors))
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        try:
            answer: Any = call(*request)
        except Exception:
            answer = traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()
