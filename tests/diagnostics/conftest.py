"""Small random models of several architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=4, n_head=4, n_positions=96, bos_token_id=0, eos_token_id=0
    ),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=16),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES, use_parallel_residual=True),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=300,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=96,
    ),
}


@pytest.fixture(scope="session")
def released() -> Callable[..., Any]:
    """Makes a model of an architecture; its weights are large enough for attention that is far from uniform."""
    return _released


def _released(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.fixture(params=list(CONFIGS))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def windows() -> Windows:
    ids = torch.randint(1, 300, (4, 40), generator=torch.Generator().manual_seed(3))
    return Windows(ids, ("one", "one", "two", "two"))


@pytest.fixture
def llama() -> Subject:
    return Subject(_released("llama"))
