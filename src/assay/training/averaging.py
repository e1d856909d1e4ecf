"""Averaging the last weights of a run: they are kept as files until its end.

    θ = Σ_i w_i θ_i    over the final weights and those 1, 2, ... ``spacing`` of the budget before

Buffers that are no floating-point numbers are the last ones'.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from assay.errors import UserError
from assay.optim import Average
from assay.training import checkpoint


class Averaging:
    """``points`` are the shares of the budget at which weights are kept, the end among them.

    Raises ``UserError`` if they would begin before the run does.
    """

    def __init__(self, average: Average, path: Path) -> None:
        self.average, self.path = average, path
        first = 1 - (average.last - 1) * average.spacing
        if first <= 0:
            raise UserError(
                f"average: last={average.last} checkpoints at spacing={average.spacing} are more than a whole run"
            )
        self.points = [1 - i * average.spacing for i in range(average.last)] if average.last > 1 else []

    def keep(self, module: nn.Module, step: int, *, write: bool = True) -> None:
        checkpoint.save_weights(self.path / f"{step:06d}.safetensors", module, write=write)

    def finish(self, module: nn.Module) -> None:
        """Give ``module`` the average of what was kept; without an average, leave it alone."""
        if self.points:
            paths = sorted(self.path.glob("*.safetensors"))[-self.average.last :]
            kept = [checkpoint.read_tensors(path) for path in paths]
            checkpoint.set_weights(module, average_weights(kept, self.average.weights(len(kept))))

    def forget(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def average_weights(checkpoints: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Σ_i w_i θ_i by name, in float32 or what is more precise; the last checkpoint's where a tensor is no float."""
    mean: dict[str, Tensor] = {}
    for name, last in checkpoints[-1].items():
        if not last.is_floating_point():
            mean[name] = last
            continue
        precise = torch.promote_types(last.dtype, torch.float32)
        total = torch.zeros_like(last, dtype=precise)
        for weight, tensors in zip(weights, checkpoints, strict=True):
            total.add_(tensors[name].to(precise), alpha=weight)
        mean[name] = total.to(last.dtype)
    return mean
