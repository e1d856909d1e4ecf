"""Hardware co-design by roofline: is latency predicted, are losses ranked, and is the proposal the better network?"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from assay.analysis.roofline import (
    LossLaw,
    Shape,
    Workload,
    confirm,
    design,
    latency,
    measure_latency,
    measure_machine,
    read_runs,
    train_grid,
)
from assay.analysis.roofline.design import draw
from assay.analysis.roofline.search import features
from assay.claims.experiments import experiments
from assay.config import assign
from assay.models import ModelConfig


@experiments.register("roofline-latency")
def roofline_latency(
    seed: int,
    *,
    count: int = 20,
    depth: int = 12,
    hidden_size: int = 512,
    prompt: int = 128,
    new: int = 8,
    seconds: float = 0.1,
) -> dict[str, float]:
    """``count`` decoders of sizes drawn up to these, timed with a batch of 1.

    ``prefill`` and ``decode``: ``.rank`` is Spearman's correlation of predicted and measured latency, ``.error`` the
    median of |predicted / measured − 1|.
    """
    device = _device()
    head_dim = min(32, hidden_size // 4)
    largest = ModelConfig.parse(
        {"depth": depth, "hidden_size": hidden_size, "head_dim": head_dim, "vocab_size": 257, "max_length": 1}
    )
    machine = measure_machine(device=device, seconds=seconds)
    work = Workload(prompt=prompt, new=new)
    pairs = []
    for model in draw(largest, count, seed):
        said = latency(Shape.of(model), machine, work)
        took = measure_latency(model, work, device=device, seconds=seconds)
        pairs.append([(said.prefill, took.prefill), (said.decode, took.decode)])
    found: dict[str, float] = {}
    for name, (predicted, measured) in zip(("prefill", "decode"), np.asarray(pairs).transpose(1, 2, 0), strict=True):
        found[f"{name}.rank"] = float(spearmanr(predicted, measured).statistic)
        found[f"{name}.error"] = float(np.median(np.abs(predicted / measured - 1)))
    return found


@experiments.register("roofline-design")
def roofline_design(
    seed: int,
    *,
    count: int = 12,
    rivals: int = 3,
    depth: int = 4,
    hidden_size: int = 128,
    tokens: int = 40_000,
    sequence_length: int = 128,
    batch_size: int = 4,
    eval_bytes: int = 32_768,
) -> dict[str, float]:
    """A grid of ``count`` networks, and a design as slow as the geometric mean of the fastest and the slowest.

    ``sizes.rank`` is Spearman's correlation of losses with those that a law of sizes, fitted to all other networks,
    predicts; ``parameters.rank`` that with the number of parameters, of either sign and with nothing held out, which
    favours it. ``rank`` is that of predicted and measured losses among the proposal and as many ``rivals``, ``gain``
    these rivals' mean bits per byte minus the proposal's.
    """
    base = assign(
        {},
        {
            "model.depth": depth,
            "model.hidden_size": hidden_size,
            "model.head_dim": hidden_size // 8,
            "data.sequence_length": sequence_length,
            "data.batch_size": batch_size,
            "data.eval_bytes": eval_bytes,
            "training.tokens": tokens,
            "training.evaluations": 1,
            "training.compile": False,
        },
    )
    work = Workload(prompt=sequence_length, new=8)
    with tempfile.TemporaryDirectory() as folder:
        grid = train_grid(base, Path(folder) / "grid", count=count, seed=seed, jobs=1)
        _, losses = read_runs(grid)
        shapes = [Shape.of(model) for model in losses]
        machine = measure_machine(device=_device(), seconds=0.05)
        times = [latency(shape, machine, work).total for shape in shapes]
        found = design(grid, machine, work, seconds=math.sqrt(min(times) * max(times)))
        checked = confirm(found, Path(folder) / "confirm", count=rivals, seed=seed + 1000, jobs=1)
    sizes = LossLaw.fit(features(list(losses)), list(losses.values()))
    parameters = spearmanr([shape.weights for shape in shapes], list(losses.values())).statistic
    first, *others = [float("nan") if value is None else value for _, value in checked.trained]
    return {
        "sizes.rank": sizes.rank,
        "parameters.rank": abs(float(parameters)),
        "rank": checked.rank,
        "gain": sum(others) / len(others) - first,
    }


def _device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
