"""Tied head: logits = x Eᵀ with the embedding's own matrix. Press, Wolf, 2016, arXiv:1608.05859."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.head import heads


@heads.register("tied")
class TiedHead(nn.Module):
    def forward(
        self, x: Float[Tensor, "*batch hidden"], embedding: Float[Tensor, "vocab hidden"]
    ) -> Float[Tensor, "*batch vocab"]:
        return F.linear(x, embedding)
