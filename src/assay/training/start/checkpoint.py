"""From the weights of another run: its last checkpoint, or one that it kept on the way.

    assay train --set training.keep=[0.5] --out base
    assay train --set start.run=base/checkpoints/000100 --out branch

With ``optimizer`` the moments go along, and with ``data`` the reading goes on where that run stopped; without them
the optimizer starts anew, and the data from its beginning. ``{seed}`` in the path stands for the run's seed, so that
every seed of a comparison goes on from its own run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from assay.errors import UserError
from assay.training import checkpoint
from assay.training.start import starts


@starts.register("checkpoint")
class FromCheckpoint:
    """``run`` is the directory of a run, or of a checkpoint that one kept.

    Raises ``UserError`` if there is none, or if it is of another model or, with ``optimizer``, another optimizer.
    """

    def __init__(self, seed: int, *, run: str, optimizer: bool = True, data: bool = True) -> None:
        self.path = find_checkpoint(run, seed)
        self.optimizer, self.data = optimizer, data

    def __call__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        if self.optimizer:
            rates = [group["lr"] for group in optimizer.param_groups]
            state = checkpoint.load(self.path, module, optimizer)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        else:
            state = checkpoint.load_weights(self.path, module)
        assert state is not None
        return state.step if self.data else 0

    def identity(self) -> Any:
        return [fingerprint(self.path), self.optimizer, self.data]


def find_checkpoint(run: str, seed: int) -> Path:
    """The directory that holds ``model.safetensors``. Raises ``UserError`` if there is none."""
    place = Path(run.replace("{seed}", str(seed)))
    for path in (place, place / "checkpoint", place / "checkpoint.old"):
        if (path / "model.safetensors").is_file():
            return path
    raise UserError(
        f"start.run={str(place)!r} holds no checkpoint; give the directory of a run, or RUN/checkpoints/STEP of one "
        "with training.keep"
    )


def fingerprint(path: Path) -> str:
    """Of the weights, so that a run that was moved is the same start, and one that went on is another."""
    with (path / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
