"""LISA: embeddings, head and a few random blocks are trained, all others stay frozen.

    A ~ uniform over the sets of γ of the N blocks    before every K-th step, the first one included
    θ_b ← AdamW(θ_b)    for b in A and for all that is in no block

Gradients of frozen blocks are never made, and what the optimizer keeps of them is freed.

Pan, Liu, Diao, Pi, Zhang, Han, Zhang, 2024, arXiv:2403.17919.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn

from assay.errors import UserError
from assay.optim.layers import Switch, blocks_of, draw, trained
from assay.optim.registries import Stateless, selections


@selections.register("lisa")
class Lisa(Stateless):
    """γ is ``layers`` (0 trains what is in no block) and K is ``every``, in steps of the optimizer.

    A block that is trained again starts with a fresh optimizer state, unless ``reset_state`` is false: then every
    state is kept, and the memory with it. Raises ``UserError`` for more layers than there are blocks.
    """

    changes = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        seed: int,
        *,
        layers: Annotated[int, Field(ge=0)] = 2,
        every: Annotated[int, Field(gt=0)] = 20,
        reset_state: bool = True,
    ) -> None:
        blocks = trained(blocks_of(model))
        check_layers("lisa", layers, len(blocks))
        self.weights = np.ones(len(blocks))
        self.layers, self.every, self.seed = layers, every, seed
        self.switch = Switch(blocks, optimizer if reset_state else None)

    def __call__(self, step: int) -> None:
        self.switch(self.active(step))

    def active(self, step: int) -> list[int]:
        """The blocks that step ``step`` trains."""
        return draw(self.weights, self.layers, self.seed, step // self.every)


def check_layers(name: str, layers: int, blocks: int) -> None:
    """Raises ``UserError`` for more layers than there are blocks."""
    if layers > blocks:
        raise UserError(f"selection {name!r}, option layers={layers}: the network has only {blocks} blocks")
