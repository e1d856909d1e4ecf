"""Drop-Muon's choice of layers: each step trains those from a random one to the output.

    s ~ p over the layers 1 (input) ... b (output),    trained are s, s+1, ..., b

    uniform        p_s = 1 / b: layer i is trained in i of b steps
    epoch-shift    p_s ∝ exp(a ((1 − q)(b − s) + q (s − 1))),   q = min(1, step / steps)

The backward pass stops at layer s; below it no gradient is made, and weights, moments and step counts stay as they
are. The paper has Muon take the step: ``optimizer = "muon"``.

Gruntkowska, Maziane, Qu, Richtárik, 2025, arXiv:2510.02239. Its distribution is the uniform one; ``epoch-shift``,
from mostly whole steps to mostly the last layers, is another implementation's.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field
from torch import nn

from assay.optim.layers import Switch, draw, suffixes
from assay.optim.registries import Stateless, selections


@selections.register("drop")
class Drop(Stateless):
    """A layer is a block; embeddings belong to the first, the last norm and the head to the last.

    ``sharpness`` is a, and ``steps`` is how many the shift takes; both are for ``epoch-shift`` alone.
    """

    changes = True

    def __init__(
        self,
        model: nn.Module,
        seed: int,
        *,
        distribution: Literal["uniform", "epoch-shift"] = "uniform",
        steps: Annotated[int, Field(gt=0)] = 1000,
        sharpness: Annotated[float, Field(ge=0)] = 0.5,
    ) -> None:
        self.layers = suffixes(model)
        self.seed, self.distribution, self.steps, self.sharpness = seed, distribution, steps, sharpness
        self.switch = Switch(self.layers)

    def __call__(self, step: int) -> None:
        self.switch(range(self.first(step), len(self.layers)))

    def first(self, step: int) -> int:
        """The first layer that step ``step`` trains, from 0."""
        return draw(self.weights(step), 1, self.seed, step)[0]

    def weights(self, step: int) -> Float[np.ndarray, " layers"]:
        """p_s of step ``step``, up to a factor."""
        place = np.arange(len(self.layers))
        if self.distribution == "uniform":
            return np.ones(len(self.layers))
        shift = min(1.0, step / self.steps)
        return np.exp(self.sharpness * ((1 - shift) * place[::-1] + shift * place))
