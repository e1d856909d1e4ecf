"""Rotary position embedding: queries and keys are turned by angles that grow with the position.

    angle(p, j) = p · θ^(−2j/d),    j = 0 .. d/2 − 1

so that ⟨q_p, k_s⟩ depends on p − s alone. Features j and j + d/2 form a pair, as in released Llama weights.
Su et al., 2021, arXiv:2104.09864. ``scaling`` holds a checkpoint's own rule, ``linear`` (positions divided by
``factor``; Chen et al., 2023, arXiv:2306.15595) or ``llama3`` (only wavelengths longer than the original
context are stretched, with a smooth passage between).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.errors import UserError
from assay.nn.position import Position, Rotation, positions

SCALING_FIELDS = {
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}


@positions.register("rotary")
class Rotary(Position):
    """Raises ``UserError`` for an odd head dimension or a scaling rule that is not known or incomplete.

    The frequencies stay in float32 when the network is cast: rounded ones misplace distant tokens.
    """

    frequencies: Tensor

    def __init__(self, head_dim: int, *, theta: float = 10000.0, scaling: dict[str, Any] | None = None) -> None:
        super().__init__()
        if head_dim % 2:
            raise UserError(f"position 'rotary' needs an even head dimension, not {head_dim}")
        self.head_dim = head_dim
        self.theta = theta
        self.scaling = scaling
        self.register_buffer("frequencies", self._frequencies(), persistent=False)

    def _frequencies(self) -> Float[Tensor, " half"]:
        powers = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        frequencies = 1.0 / self.theta**powers
        return frequencies if self.scaling is None else _scale(frequencies, self.scaling)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.frequencies = self._frequencies().to(self.frequencies.device)
        return self

    def rotation(self, ids: Int[Tensor, "batch time"], dtype: torch.dtype) -> Rotation:
        angles = ids[:, None, :, None].float() * self.frequencies
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _scale(frequencies: Float[Tensor, " half"], scaling: dict[str, Any]) -> Float[Tensor, " half"]:
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in SCALING_FIELDS:
        raise UserError(f"position 'rotary' knows the scaling rules linear and llama3, not {kind!r}")
    missing = [field for field in SCALING_FIELDS[kind] if field not in scaling]
    if missing:
        raise UserError(f"position 'rotary': the scaling rule {kind} lacks {', '.join(missing)}")
    if kind == "linear":
        return frequencies / scaling["factor"]
    context = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = context * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / scaling["factor"]
