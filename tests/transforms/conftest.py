"""Small models with random parameters, and text for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from assay.data import DataConfig
from assay.data.windows import TokenData, prepare
from assay.models import Decoder, ModelConfig

SIZES = {"depth": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 257, "max_length": 24}


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., Decoder]:
    """A decoder whose parameters, those of norms too, are all drawn; fields of its configuration as arguments."""

    @torch.no_grad()
    def make(seed: int = 0, **fields: Any) -> Decoder:
        decoder = Decoder(ModelConfig.parse({**SIZES, **fields})).eval()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in decoder.named_parameters():
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (1.0 if gain else 0.0))
        return decoder

    return make


@pytest.fixture
def data(corpus: Path) -> TokenData:
    fields = {"corpus": f"text:{corpus}", "sequence_length": 24, "eval_bytes": 1024}
    return prepare(DataConfig.parse(fields))
