"""Gradient evenness: how alike the layers' gradients are in size.

    g_l = ‖∂ loss / ∂ θ_l‖ over all parameters θ_l of layer l
    spread = max g_l / min g_l,    variation = std(g_l) / mean(g_l)

The loss is the cross-entropy of each next token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from assay.claims.properties import properties
from assay.models import Decoder


@properties.register("gradient-evenness")
def gradient_evenness(model: Decoder, ids: Int[Tensor, "batch time"]) -> dict[str, float]:
    """``spread`` and ``variation``, 1 and 0 for layers with equal gradient norms."""
    with torch.enable_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        layers = [list(layer.parameters()) for layer in model.layers]
        gradients = iter(torch.autograd.grad(loss, [p for layer in layers for p in layer]))
    squares = [sum(next(gradients).double().square().sum().item() for _ in layer) for layer in layers]
    norms = torch.tensor(squares, dtype=torch.float64).sqrt()
    return {
        "spread": (norms.max() / norms.min()).item(),
        "variation": (norms.std(correction=0) / norms.mean()).item(),
    }
