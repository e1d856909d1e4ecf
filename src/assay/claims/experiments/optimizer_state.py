"""How much optimizers keep from step to step, in the proportions of LLaMA 1B at an eighth of its width.

Of each optimizer the bytes of all states after one step are counted, step counters left out. Ranks are a quarter of
the width, 512 in LLaMA 1B.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from assay.claims.experiments import experiments
from assay.models import Decoder
from assay.models.config import ModelConfig
from assay.optim import optimizers, parameter_groups

WIDTH, DEPTH, HEADS, INTERMEDIATE, VOCABULARY = 2048, 24, 32, 5461, 32000


@experiments.register("optimizer-state")
def optimizer_state(seed: int, *, width: int = 256) -> dict[str, float]:
    """Bytes of state per parameter of ``adamw``, ``galore``, ``fira`` and ``sinkgd``, all in float32."""
    share = width / WIDTH
    config = ModelConfig(
        depth=DEPTH,
        hidden_size=width,
        num_heads=max(1, round(HEADS * share)),
        intermediate_size=round(INTERMEDIATE * share),
        vocab_size=round(VOCABULARY * share),
        max_length=8,
    )
    model = Decoder(config)
    low_rank: dict[str, Any] = {"rank": width // 4}
    kinds: dict[str, dict[str, Any]] = {"adamw": {}, "galore": low_rank, "fira": low_rank, "sinkgd": {}}
    return {name: state_bytes(name, options, model, seed) for name, options in kinds.items()}


def state_bytes(name: str, options: dict[str, Any], model: nn.Module, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer = optimizers.build(name, options, params=parameter_groups(model), lr=0.0)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    return sum(value.numel() * value.element_size() for value in kept) / sum(p.numel() for p in parameters)
