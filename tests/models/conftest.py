"""Tiny random networks for the tests of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from assay.models import Decoder, ModelConfig

SIZES = {"depth": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 61, "max_length": 64}


@pytest.fixture(scope="session")
def randomize() -> Callable[..., None]:
    """Draws every matrix, and moves every vector from its start, as a seed says."""

    @torch.no_grad()
    def add_noise(model: torch.nn.Module, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.2 * noise)

    return add_noise


@pytest.fixture(scope="session")
def make_decoder(randomize: Callable[..., None]) -> Callable[..., Decoder]:
    """A decoder of 2 layers with random parameters; fields of its configuration as arguments."""

    def make(seed: int = 0, **fields: Any) -> Decoder:
        decoder = Decoder(ModelConfig.parse({**SIZES, **fields})).eval()
        randomize(decoder, seed)
        return decoder

    return make


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (3, 20), generator=torch.Generator().manual_seed(1))
