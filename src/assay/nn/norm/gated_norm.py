"""GatedNorm: RMSNorm followed by a low-rank gate on its own result.

    y = γ ⊙ x / rms(x),    y ← g · σ(W_up silu(W_down y)) ⊙ y

The gate rescales the stream explicitly, which otherwise takes outliers: one huge feature raises rms(x) and so shrinks
all others. ``rank`` is the width between the two matrices. The paper has g = 1; drawn like every other weight the
matrices start gates near ½, so that ``gate_scale`` = 2 starts near RMSNorm. Norms of heads have no gate.

Qiu et al., 2026, arXiv:2601.22966.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from assay.nn.norm import NormPlace, norms
from assay.nn.norm.rms_norm import RMSNorm


@norms.register("gated-norm")
class GatedNorm(RMSNorm):
    def __init__(
        self,
        hidden_size: int,
        place: NormPlace = "input",
        *,
        rank: Annotated[int, Field(gt=0)] = 16,
        gate_scale: Annotated[float, Field(gt=0)] = 1.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(hidden_size, eps=eps)
        self.gate_scale = gate_scale
        self.gated = place != "heads"
        if self.gated:
            self.down = nn.Linear(hidden_size, rank, bias=False)
            self.up = nn.Linear(rank, hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        y = super().forward(x)
        if not self.gated:
            return y
        scores = self.up(F.silu(self.down(y)))
        gate = scores.to(torch.promote_types(y.dtype, torch.float32)).sigmoid()
        return (self.gate_scale * gate * y).to(y.dtype)
