"""Normalize-and-Project: every hidden matrix keeps the Frobenius norm that it started with.

    W ← ‖W(0)‖ W / ‖W‖    after each step

A loss that sees W only through a norm, as in φ(N(W x)), does not change with ‖W‖, and its gradient is as 1 / ‖W‖.
While W grows, as it does by each step of gradient descent, a rate η works like η / ‖W‖². Projected, the rate is what
the schedule says. ``mlp = "normed-swiglu"`` has the norm before the non-linearity, and so has, softmax being one, a
mixer with ``qk_norm``. Heads and embeddings are not projected.

Gains s and offsets b of norms, which start at s₀ = 1 and b₀ = 0, are treated in one of three ways:

    project    (s, b) ← ‖(s₀, b₀)‖ (s, b) / ‖(s, b)‖: no change to φ(N(V φ(s ⊙ z + b))) for a positively homogeneous φ
    decay      (s, b) ← (s, b) − η λ ((s, b) − (s₀, b₀))
    fixed      (s, b) ← (s₀, b₀): not learned

Lyle, Zheng, Khetarpal, Martens, van Hasselt, Pascanu, Dabney, 2024, arXiv:2407.01800.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from assay.optim.groups import parameter_groups
from assay.optim.registries import constraints


@constraints.register("normalize-and-project")
class NormalizeAndProject:
    """Matrices are projected ``every`` so many steps, gains after each; ``gain_decay`` is λ.

    Matrices are the parameters of role ``matrix``. A gain is a parameter ``weight`` of one dimension, its offset the
    ``bias`` beside it. What starts at 0 is left alone.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: Annotated[int, Field(gt=0)] = 1,
        gains: Literal["project", "decay", "fixed"] = "decay",
        gain_decay: Annotated[float, Field(ge=0)] = 0.1,
    ) -> None:
        self.every, self.gains, self.gain_decay = every, gains, gain_decay
        matrices = [p for group in parameter_groups(model) if group["role"] == "matrix" for p in group["params"]]
        self.matrices = [matrix for matrix in matrices if matrix.detach().any()]
        self.norms = [matrix.detach().norm() for matrix in self.matrices]
        affine = [gain_and_offset(module) for module in model.modules()]
        self.affine = [pair for pair in affine if any(p.detach().any() for p in pair)]
        self.starts = [[p.detach().clone() for p in pair] for pair in self.affine]

    @torch.no_grad()
    def __call__(self, step: int, lr: float) -> None:
        if step % self.every == 0:
            for matrix, norm in zip(self.matrices, self.norms, strict=True):
                matrix.mul_(norm / matrix.norm())
        for pair, starts in zip(self.affine, self.starts, strict=True):
            if self.gains == "project":
                factor = joint_norm(starts) / joint_norm(pair)
                for parameter in pair:
                    parameter.mul_(factor)
            else:
                for parameter, start in zip(pair, starts, strict=True):
                    parameter.lerp_(start, lr * self.gain_decay if self.gains == "decay" else 1.0)


def gain_and_offset(module: nn.Module) -> list[nn.Parameter]:
    """The trainable gain and offset of a norm; nothing of any other module."""
    gain = getattr(module, "weight", None)
    if not isinstance(gain, nn.Parameter) or gain.ndim != 1:
        return []
    offset = getattr(module, "bias", None)
    return [p for p in (gain, offset) if isinstance(p, nn.Parameter) and p.requires_grad]


def joint_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The root of the sum of squares of all of them together."""
    return torch.stack([tensor.detach().norm() for tensor in tensors]).norm()
