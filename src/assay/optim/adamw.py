"""AdamW, torch's fused implementation.

    m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  θ ← θ − η(m̂ / (√v̂ + ε) + λθ)

Loshchilov, Hutter, 2017, arXiv:1711.05101.
"""

from __future__ import annotations

import torch

from assay.optim.groups import ParameterGroup
from assay.optim.registries import optimizers


@optimizers.register("adamw")
def adamw(
    groups: list[ParameterGroup],
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> torch.optim.AdamW:
    """``weight_decay`` applies to the groups that are decayed."""
    decayed = [{**group, "weight_decay": weight_decay if group["decay"] else 0.0} for group in groups]
    return torch.optim.AdamW(decayed, lr=lr, betas=betas, eps=eps, fused=True)
