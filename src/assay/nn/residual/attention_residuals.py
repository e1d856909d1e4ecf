"""Attention residuals: each sublayer reads a softmax mixture, over depth, of the embedding and earlier outputs.

    v_0 = embedding,    v_i = F_i(h_i)
    h_l = Σ_{i<l} α_{l,i} v_i,    α_l = softmax_i ⟨w_l, γ_l ⊙ v_i / rms(v_i)⟩

for each of the L sublayers (two per layer), and once more, with a query of its own, for what the head sees. Keys are
normed, values are not; there is no 1/√d. In the block form, ⌈L/N⌉ successive sublayers are a block, and the mixture
is over

    v_0,  the sums of the outputs of the N blocks before,  the sum so far of the block's own outputs,

so that N + 1 vectors per token are kept in place of L + 1. Blocks of one sublayer are the full form. Queries start at
0: all sources weigh the same, which under norms on the branches' inputs is the plain residual network.

Kimi Team, 2026, arXiv:2603.15031.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.residual import ResidualStream, residuals


class Sources(NamedTuple):
    """What can be read, oldest first, and how well it fits each later query."""

    values: tuple[Float[Tensor, "batch time hidden"], ...]
    logits: tuple[Float[Tensor, "batch time queries"], ...]
    queries: Float[Tensor, "queries hidden"]


@residuals.register("attention-residuals")
class AttentionResiduals(ResidualStream):
    """``blocks`` is the largest number of blocks N, or ``"full"``."""

    def __init__(
        self,
        hidden_size: int,
        num_sublayers: int,
        *,
        blocks: Annotated[int, Field(gt=0)] | Literal["full"] = 8,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.block_size = 1 if blocks == "full" else -(-num_sublayers // blocks)
        self.eps = eps
        reads = num_sublayers + 1
        self.queries = nn.ParameterList(torch.zeros(hidden_size) for _ in range(reads))
        self.gains = nn.ParameterList(torch.ones(hidden_size) for _ in range(reads))

    def start(self, x: Float[Tensor, "batch time hidden"]) -> Sources:
        queries = torch.stack(list(self.queries)) * torch.stack(list(self.gains))
        return Sources((x,), (self._logits(x, queries),), queries)

    def read(self, state: Sources, sublayer: int) -> Float[Tensor, "batch time hidden"]:
        weights = self.weights(state, sublayer).to(state.values[0].dtype)
        mixed = weights[..., 0, None] * state.values[0]
        for source, value in enumerate(state.values[1:], start=1):
            mixed = torch.addcmul(mixed, weights[..., source, None], value)
        return mixed

    def write(self, state: Sources, y: Float[Tensor, "batch time hidden"], sublayer: int) -> Sources:
        values, logits, queries = state
        if sublayer % self.block_size:
            y = values[-1] + y
            values, logits = values[:-1], logits[:-1]
        return Sources((*values, y), (*logits, self._logits(y, queries)), queries)

    def normalize(self, state: Sources, norm: nn.Module) -> Sources:
        raise UserError(
            "residual 'attention-residuals' keeps no running sum that a norm could be applied to; choose a placement "
            "with norms on the branches, such as 'pre-ln' or 'peri-ln'"
        )

    def finish(self, state: Sources) -> Float[Tensor, "batch time hidden"]:
        return self.read(state, -1)

    def weights(self, state: Sources, sublayer: int) -> Float[Tensor, "batch time sources"]:
        """α of one sublayer over the sources that there are, or of the head for ``sublayer`` = −1."""
        return torch.stack([logits[..., sublayer] for logits in state.logits], dim=-1).softmax(-1)

    def _logits(
        self, x: Float[Tensor, "batch time hidden"], queries: Float[Tensor, "queries hidden"]
    ) -> Float[Tensor, "batch time queries"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.linear(x, queries) * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
