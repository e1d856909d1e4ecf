"""Shrink and perturb: another run's weights, made smaller, with a little of a fresh initialisation.

    θ = shrink · θ_run + perturb · θ_fresh

The fresh network is drawn for this start alone, so that it is no copy of what the other run began with, and the noise
of each layer has the scale that its initialisation has. All parameters are mixed; buffers are the fresh network's.
The optimizer starts anew, and the data from their beginning.

Ash, Adams, 2019, arXiv:1910.08475.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from assay.models import Decoder
from assay.models.initialization import initialize
from assay.training import checkpoint
from assay.training.objective import Objective
from assay.training.start import starts
from assay.training.start.checkpoint import find_checkpoint, fingerprint


@torch.no_grad()
def shrink_and_perturb(old: nn.Module, fresh: nn.Module, *, shrink: float, perturb: float) -> None:
    """Give ``fresh`` the mixture of both networks' parameters, in place; its buffers stay. Tied ones count once.

    Raises ``ValueError`` if the networks do not have as many parameters.
    """
    for parameter, before in zip(fresh.parameters(), old.parameters(), strict=True):
        parameter.mul_(perturb).add_(before, alpha=shrink)


@starts.register("shrink-and-perturb")
class ShrinkAndPerturb:
    """``run`` is the directory of a run, or of a checkpoint that one kept; ``{seed}`` in it is the run's seed.

    Raises ``UserError`` if there is none, or if it is of another model.
    """

    def __init__(
        self,
        seed: int,
        *,
        run: str,
        shrink: Annotated[float, Field(ge=0, le=1)] = 0.4,
        perturb: Annotated[float, Field(ge=0)] = 0.1,
    ) -> None:
        self.path = find_checkpoint(run, seed)
        self.seed, self.shrink, self.perturb = seed, shrink, perturb

    def __call__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        like = next(part for part in module.modules() if isinstance(part, Objective))
        old, fresh = (_drawn(like, f"{self.seed}:{fingerprint(self.path)}") for _ in range(2))
        checkpoint.load_weights(self.path, old)
        shrink_and_perturb(old, fresh, shrink=self.shrink, perturb=self.perturb)
        checkpoint.set_weights(module, fresh.state_dict())
        return 0

    def identity(self) -> Any:
        return ["shrink-and-perturb", fingerprint(self.path), self.shrink, self.perturb]


def _drawn(like: Objective, name: str) -> Objective:
    """An objective of the same kind on the CPU, initialised by a seed made of ``name``."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = Objective(Decoder(like.model.config), copy.deepcopy(like.loss).cpu(), "float32")
    initialize(drawn.model, seed, like.model.config.init_std)
    return drawn
