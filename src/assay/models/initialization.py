"""Random initialisation that pairs networks.

Every parameter is drawn from a generator seeded by the run's seed and the parameter's own name, so that two
networks with one seed start from the same values wherever they have the same parameter, whatever else either
of them has. Two arms of a comparison therefore differ by their technique and by nothing else.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn


@torch.no_grad()
def initialize(model: nn.Module, seed: int, std: float) -> None:
    """Weights of linear and embedding layers ~ N(0, std²), their biases 0; other parameters keep their start."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            generator = torch.Generator().manual_seed(_seed_of(seed, name))
            values = torch.empty(module.weight.shape, dtype=torch.float32)
            module.weight.copy_(values.normal_(0.0, std, generator=generator))
            bias = getattr(module, "bias", None)
            if bias is not None:
                bias.zero_()


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
