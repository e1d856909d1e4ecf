"""FLOPs and parameters of a model, counted on the model itself without its storage."""

from __future__ import annotations

import functools

import torch
from torch.utils.flop_counter import FlopCounterMode

from assay.models import Decoder, ModelConfig


@functools.lru_cache(maxsize=256)
def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Forward and backward FLOPs per token at a sequence length.

    The model runs once without storage (on the meta device) under torch's counter, which knows matrix products and
    attention; element-wise work is not counted.
    """
    with torch.device("meta"):
        model = Decoder(config)
        ids = torch.zeros(1, sequence_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    return counter.get_total_flops() / sequence_length


@functools.lru_cache(maxsize=256)
def parameter_count(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Decoder(config).parameters())
