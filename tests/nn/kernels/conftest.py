"""Kernels in Triton's interpreter beside the plain functions that define them."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

Interpreter = Callable[..., list[Tensor]]


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """The function ``call`` of ``interpreter.py`` in a process of its own."""
    pytest.importorskip("triton")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("interpreter.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None

        def call(*request: Any) -> list[Tensor]:
            pickle.dump(request, process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
            assert isinstance(answer, list), answer
            return answer

        yield call
        process.stdin.close()


class Twins:
    """A plain function, by its path ``module:name``, and its kernel."""

    def __init__(self, path: str, interpreter: Interpreter) -> None:
        self.path = path
        self.interpreter = interpreter
        module, name = path.split(":")
        self.function = getattr(importlib.import_module(module), name)

    def kernel(self, tensors: Sequence[Tensor], *others: Any, towards: Tensor | None = None, order: int = 1) -> Any:
        """The result, its gradients, and with order 2 those of the gradients' sum of squares."""
        results = self.interpreter(self.path, list(tensors), list(others), towards, order)
        return results if towards is not None else results[0]

    def plain(self, tensors: Sequence[Tensor], *others: Any, towards: Tensor, order: int = 1) -> list[Tensor]:
        """The same of the plain function."""
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        y = self.function(*tensors, *others)
        first = torch.autograd.grad(y, wanted, towards, create_graph=order == 2)
        results = [y, *first]
        if order == 2:
            results += torch.autograd.grad(sum(gradient.square().sum() for gradient in first), wanted)
        return [result.detach() for result in results]

    def check(self, tensors: Sequence[Tensor], *others: Any, towards: Tensor | None = None, order: int = 1) -> None:
        """The kernel is as near to the plain function in float64 as the plain function itself is, about."""
        if towards is None:
            y = self.function(*tensors, *others)
            towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(99)).to(y.dtype)
        ours = self.kernel(tensors, *others, towards=towards, order=order)
        plain = self.plain(tensors, *others, towards=towards, order=order)
        wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]
        exact = self.plain(wide, *others, towards=towards.double(), order=order)
        assert len(ours) == len(plain) == len(exact)
        for mine, theirs, reference in zip(ours, plain, exact, strict=True):
            assert mine.dtype == theirs.dtype
            assert mine.shape == theirs.shape
            if mine.numel() == 0:
                continue
            rounding = torch.finfo(mine.dtype).eps + 32 * torch.finfo(torch.float32).eps
            allowed = 1.5 * (theirs - reference).abs().max() + rounding * reference.abs().max()
            assert (mine - reference).abs().max() <= allowed


@pytest.fixture(scope="session")
def twins(interpreter: Interpreter) -> Callable[[str], Twins]:
    return lambda path: Twins(path, interpreter)


@pytest.fixture(scope="session")
def draw() -> Callable[..., Tensor]:
    """``draw(*shape, seed=0, dtype=torch.float32)``: normal numbers that want a gradient."""

    def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()

    return normal
