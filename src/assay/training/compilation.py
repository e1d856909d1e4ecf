"""When to compile a step, and how: layer by layer, once for all runs of a process that have like layers."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext

import torch

from assay.models import Decoder
from assay.optim import selections
from assay.training.budget import Budget
from assay.training.config import RunConfig

EAGER_FLOPS = {"cpu": 60e9, "cuda": 1e14}
"""Sustained FLOP/s of an eager step, per thread of a CPU and per GPU: the order of magnitude is what matters."""

SECONDS = 25
"""What compiling a layer and its backward pass takes, about, with one thread of a CPU: 30 for the first of a machine,
15 for others, and 3 where torch finds the kernels in its cache."""

LAYER_GRAPHS = 256
"""Kinds of layers that one process may meet; beyond, torch runs them uncompiled."""

COMPILERS = ("c++", "g++", "clang++")


def saving(config: RunConfig) -> float:
    """Share of an eager step that compiling saves: min(1/3, w / hidden size), w = 40 (float32) or 80 (bfloat16).

    What is saved are passes over memory, which matter less beside the matrix products the wider the model is; fitted
    to ``benchmarks/train_speed.py``.
    """
    width = 80 if config.training.precision == "bfloat16" else 40
    return min(1 / 3, width / config.model.hidden_size)


def repays(config: RunConfig, *, device: str, threads: int | None = None, sharing: int = 1) -> bool:
    """Whether compiling pays for itself over ``sharing`` runs that use one graph after another.

    The cost is taken as ``SECONDS``, the gain as ``saving`` of the eager time with ``threads`` threads of the CPU (by
    default torch's number). It never does without a compiler, or where the trained parameters change from step to
    step, and the graph with them.
    """
    if config.training.compile != "auto":
        return config.training.compile
    if not can_compile(device) or getattr(selections[config.selection.name], "changes", True):
        return False
    budget = Budget.of(config)
    if budget.steps is None:
        seconds = budget.seconds or 0.0
    else:
        workers = (threads or torch.get_num_threads()) if device == "cpu" else 1
        seconds = budget.steps * budget.flops_per_step / (EAGER_FLOPS.get(device, 1e13) * workers)
    return saving(config) * seconds * sharing > SECONDS


def compile_layers(model: Decoder) -> None:
    """Compile each layer by itself, in place.

    Layers of one kind share one graph, whose parameters are inputs: a deep model costs no more to compile than a
    shallow one, and later runs of this process with like layers compile nothing. What changes from layer to layer
    in kind, as a list of earlier outputs, gets graphs of its own.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, LAYER_GRAPHS)
    for layer in model.layers:
        layer.compile()


def as_written(compiled: bool) -> AbstractContextManager[None]:
    """Inside, layers that are ``compiled`` run as they were written: evaluations and diagnoses compile nothing."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def can_compile(device: str) -> bool:
    """Whether there is a C++ compiler for kernels of a CPU; those of a GPU bring their own."""
    return device != "cpu" or any(shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS) if name)
