"""Cross-entropy of the next token, with two usual additions.

    L = mean over tokens of (−log softmax(z)_target) + z_loss · (log Σ exp z)²

``label_smoothing`` moves that share of the target's mass to all tokens alike (Szegedy et al., 2015,
arXiv:1512.00567); ``z_loss`` holds the normaliser near 1 (Chowdhery et al., 2022, arXiv:2204.02311).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses import losses


@losses.register("cross-entropy")
class CrossEntropy(nn.Module):
    def __init__(self, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def forward(
        self, logits: Float[Tensor, "batch time vocab"], targets: Int[Tensor, "batch time"]
    ) -> Float[Tensor, ""]:
        rows = logits.flatten(0, 1).float()
        flat = targets.flatten()
        loss = F.cross_entropy(rows, flat, label_smoothing=self.label_smoothing)
        if self.z_loss:
            normalisers = torch.logsumexp(rows, dim=-1)[flat != -100]
            loss = loss + self.z_loss * normalisers.square().mean()
        return loss
