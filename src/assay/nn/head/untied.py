"""Untied head: logits = x Wᵀ + b with a matrix of its own; ``bias`` (off by default) adds b."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.head import heads


@heads.register("untied")
class UntiedHead(nn.Module):
    def __init__(self, hidden_size: int, vocab_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, vocab_size, bias=bias)

    def forward(
        self, x: Float[Tensor, "*batch hidden"], embedding: Float[Tensor, "vocab hidden"]
    ) -> Float[Tensor, "*batch vocab"]:
        return self.projection(x)
