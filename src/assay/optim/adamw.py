"""AdamW, torch's fused implementation.

    m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  θ ← θ − η(m̂ / (√v̂ + ε) + λθ)

Loshchilov, Hutter, 2017, arXiv:1711.05101.
"""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from assay.optim.groups import with_roles
from assay.optim.registries import optimizers


@optimizers.register("adamw")
def adamw(
    params: ParamsT,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> torch.optim.AdamW:
    """``weight_decay`` applies to the groups that are decayed."""
    groups = [{"weight_decay": weight_decay if group["decay"] else 0.0, **group} for group in with_roles(params)]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
