"""FLOPs and parameters against the sums that can be done on paper."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.models import Decoder, ModelConfig
from assay.training.flops import flops_per_token, parameter_count


def decoder(
    depth: int, heads: int, head_dim: int, kv_heads: int, inner: int, vocab: int, **options: Any
) -> ModelConfig:
    return ModelConfig(
        depth=depth,
        hidden_size=heads * head_dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=vocab,
        max_length=64,
        **options,
    )


@settings(max_examples=12, deadline=None)
@given(
    depth=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    head_dim=st.sampled_from([4, 8]),
    mlp=st.sampled_from([12, 40]),
    vocab=st.sampled_from([17, 257]),
    length=st.sampled_from([1, 2, 33, 64]),
)
def test_a_plain_decoder_costs_6n_and_its_attention(
    depth: int, kv_heads: int, group: int, head_dim: int, mlp: int, vocab: int, length: int
) -> None:
    """Per token: 6 for each weight of a matrix product (2 forward, 4 backward), 12 · time · hidden for each layer.

    The scores QKᵀ and the mixture of values take 2 · time · hidden each forward, and twice that backward. The
    embedding is looked up, not multiplied.
    """
    heads = kv_heads * group
    hidden = heads * head_dim
    weights = depth * (2 * hidden**2 + 2 * hidden * kv_heads * head_dim + 3 * hidden * mlp) + vocab * hidden
    config = decoder(depth, heads, head_dim, kv_heads, mlp, vocab)
    assert flops_per_token(config, length) == 6 * weights + 12 * length * hidden * depth
    assert parameter_count(config) == weights + vocab * hidden + (2 * depth + 1) * hidden


def test_a_tied_head_costs_what_an_untied_one_does() -> None:
    tied, untied = (decoder(2, 2, 8, 2, 40, 257, head=head) for head in ("tied", "untied"))
    assert flops_per_token(tied, 32) == flops_per_token(untied, 32)
    assert parameter_count(untied) - parameter_count(tied) == 257 * 16


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "seednorm", "placement": "peri-ln"},
        {"mlp": "gelu", "position": "learned", "norm": "layer-norm", "head": "tied"},
        {"mixer": ["gated-attention", "softmax"]},
    ],
)
def test_parameters_are_those_of_the_built_network(options: dict[str, Any]) -> None:
    config = decoder(2, 2, 8, 2, 40, 101, **options)
    assert parameter_count(config) == sum(p.numel() for p in Decoder(config).parameters())


def test_more_of_anything_costs_more() -> None:
    base = flops_per_token(decoder(2, 2, 8, 2, 40, 101), 32)
    larger = [
        decoder(3, 2, 8, 2, 40, 101),
        decoder(2, 3, 8, 3, 40, 101),
        decoder(2, 2, 8, 2, 48, 101),
        decoder(2, 2, 8, 2, 40, 102),
        decoder(2, 2, 8, 2, 40, 101, mixer="gated-attention"),
    ]
    assert all(flops_per_token(config, 32) > base for config in larger)
    assert flops_per_token(decoder(2, 2, 8, 2, 40, 101), 64) > base
