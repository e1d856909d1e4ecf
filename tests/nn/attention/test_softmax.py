from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from assay.nn.attention.softmax import SoftmaxAttention
from assay.nn.mixer import mixers
from assay.nn.norm import norms
from assay.nn.position import Positions
from assay.nn.position.rotary import Rotary

HIDDEN, DIM = 20, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(
    num_heads: int = 4, num_kv_heads: int = 2, name: str = "softmax", seed: int = 1, **options: Any
) -> SoftmaxAttention:
    mixer = mixers.build(
        name,
        options,
        hidden_size=HIDDEN,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=DIM,
        layer=0,
        norm=lambda size: norms.build("rms-norm", hidden_size=size),
    ).double()
    for index, parameter in enumerate(mixer.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed + index) / 2)
    return mixer


def by_hand(mixer: SoftmaxAttention, x: Tensor, mask: Tensor) -> Tensor:
    """One query head and one token at a time; ``mask`` is [time, time]."""
    heads, shared = mixer.query.out_features // DIM, mixer.key.out_features // DIM
    result = torch.zeros(*x.shape[:2], heads * DIM, dtype=x.dtype)
    for b in range(x.shape[0]):
        for h in range(heads):
            rows, common = slice(h * DIM, (h + 1) * DIM), h // (heads // shared)
            pair = slice(common * DIM, (common + 1) * DIM)
            q = x[b] @ mixer.query.weight[rows].T
            k = x[b] @ mixer.key.weight[pair].T
            v = x[b] @ mixer.value.weight[pair].T
            for i in range(x.shape[1]):
                seen = [j for j in range(x.shape[1]) if mask[i, j]]
                scores = torch.stack([q[i] @ k[j] / math.sqrt(DIM) for j in seen])
                weights = scores.exp() / scores.exp().sum()
                result[b, i, rows] = sum(weight * v[j] for weight, j in zip(weights, seen, strict=True))
    return result @ mixer.output.weight.T


def causal(time: int) -> Tensor:
    return torch.ones(time, time, dtype=torch.bool).tril()


@settings(max_examples=15, deadline=None)
@given(
    shared=st.integers(1, 3),
    group=st.integers(1, 3),
    batch=st.integers(1, 2),
    time=st.integers(1, 5),
    masked=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_is_the_definition(shared: int, group: int, batch: int, time: int, masked: bool, seed: int) -> None:
    mixer, x = make(shared * group, shared, seed=seed), draw(batch, time, HIDDEN, seed=seed)
    mask = causal(time)
    if masked:
        mask = (draw(time, time, seed=seed + 99) > 0) | torch.eye(time, dtype=torch.bool)
    y = mixer(x, Positions(mask=mask.expand(batch, 1, time, time) if masked else None))
    torch.testing.assert_close(y, by_hand(mixer, x, mask), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_no_mask_means_causal(num_kv_heads: int) -> None:
    mixer, x = make(4, num_kv_heads), draw(2, 5, HIDDEN)
    masked = mixer(x, Positions(mask=causal(5).expand(2, 1, 5, 5)))
    torch.testing.assert_close(mixer(x, Positions()), masked, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "qkv_bias": True, "output_bias": True}])
def test_later_tokens_do_not_reach_earlier_ones(options: dict[str, Any]) -> None:
    mixer, x = make(**options), draw(1, 6, HIDDEN)
    y = mixer(x, Positions())
    changed = x.clone()
    changed[:, 3:] = draw(1, 3, HIDDEN, seed=5)
    again = mixer(changed, Positions())
    torch.testing.assert_close(again[:, :3], y[:, :3], rtol=1e-12, atol=1e-14)
    assert (again - y)[:, 3:].abs().amax(-1).min() > 1e-3


def test_weights_sum_to_one() -> None:
    mixer, x = make(qkv_bias=True), draw(1, 5, HIDDEN)
    mixer.value.weight.data.zero_()
    value = mixer.value.bias.view(2, DIM).repeat_interleave(2, dim=0).flatten()
    expected = (mixer.output.weight @ value).expand(1, 5, HIDDEN)
    torch.testing.assert_close(mixer(x, Positions()), expected, rtol=1e-12, atol=1e-14)


def copy_projections(ours: SoftmaxAttention, theirs: nn.Module) -> None:
    for mine, other in (
        (ours.query, theirs.q_proj),
        (ours.key, theirs.k_proj),
        (ours.value, theirs.v_proj),
        (ours.output, theirs.o_proj),
    ):
        other.load_state_dict(mine.state_dict())


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)[None, None]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_is_the_attention_of_llama(num_kv_heads: int, bias: bool) -> None:
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_key_value_heads=num_kv_heads,
        head_dim=DIM,
        attention_bias=bias,
        attn_implementation="eager",
    )
    ours, theirs = make(4, num_kv_heads, qkv_bias=bias, output_bias=bias), LlamaAttention(config, 0).double()
    copy_projections(ours, theirs)
    x, ids = draw(2, 7, HIDDEN), torch.arange(3, 10)[None]
    expected, _ = theirs(x, LlamaRotaryEmbedding(config)(x, ids), additive(causal(7)))
    y = ours(x, Positions(Rotary(DIM).rotation(ids, torch.float64)))
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


def test_with_normed_queries_and_keys_is_the_attention_of_qwen3() -> None:
    config = Qwen3Config(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=DIM,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    ours, theirs = make(4, 2, qk_norm=True), Qwen3Attention(config, 0).double()
    copy_projections(ours, theirs)
    theirs.q_norm.load_state_dict(ours.query_norm.state_dict())
    theirs.k_norm.load_state_dict(ours.key_norm.state_dict())
    assert not torch.equal(ours.query_norm.weight, ours.key_norm.weight)
    x, ids = draw(2, 7, HIDDEN), torch.arange(7)[None]
    rotation = Rotary(DIM).rotation(ids, torch.float64)
    theta = tuple(torch.cat((half, half), dim=-1)[:, 0] for half in rotation)
    expected, _ = theirs(x, theta, additive(causal(7)))
    torch.testing.assert_close(ours(x, Positions(rotation)), expected, rtol=1e-6, atol=1e-6)


def test_normed_queries_and_keys_forget_their_size() -> None:
    mixer, x = make(qk_norm=True), draw(1, 5, HIDDEN)
    y = mixer(x, Positions())
    mixer.query.weight.data *= 1e4
    mixer.key.weight.data *= 3e3
    torch.testing.assert_close(mixer(x, Positions()), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "gated-attention"])
@pytest.mark.parametrize("chunks", [[1, 1, 1, 1, 1, 1], [4, 2], [3, 1, 2]])
def test_in_pieces_with_a_cache_is_the_whole_at_once(name: str, chunks: list[int]) -> None:
    mixer, x, rotary = make(name=name, qk_norm=True), draw(2, 6, HIDDEN), Rotary(DIM)
    whole = mixer(x, Positions(rotary.rotation(torch.arange(6)[None], torch.float64)))
    cache, pieces, start = DynamicCache(), [], 0
    for size in chunks:
        rotation = rotary.rotation(torch.arange(start, start + size)[None], torch.float64)
        mask = causal(6)[start : start + size, : start + size].expand(2, 1, size, start + size)
        pieces.append(mixer(x[:, start : start + size], Positions(rotation, mask), cache))
        start += size
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-12)
    assert cache.get_seq_length() == 6


def test_left_padding_changes_no_real_token() -> None:
    mixer, x = make(4, 2), draw(1, 5, HIDDEN)
    alone = mixer(x[:, 2:], Positions())
    seen = causal(5) & (torch.arange(5) >= 2)
    padded = mixer(x, Positions(mask=seen[None, None]))
    torch.testing.assert_close(padded[:, 2:], alone, rtol=1e-10, atol=1e-12)
    assert torch.isfinite(padded).all()


@pytest.mark.parametrize("name", ["softmax", "gated-attention"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_under_autocast_is_close_to_full_precision(name: str, qk_norm: bool) -> None:
    mixer, x = make(name=name, qk_norm=qk_norm).float(), draw(2, 7, HIDDEN).float()
    ids = torch.arange(7)[None]
    wide = mixer(x, Positions(Rotary(DIM).rotation(ids, torch.float32)))
    with torch.autocast("cpu", torch.bfloat16):
        low = mixer(x, Positions(Rotary(DIM).rotation(ids, torch.bfloat16)))
    assert low.dtype == torch.bfloat16
    assert ((low - wide).norm() / wide.norm()).item() < 0.03


def test_plain_by_default() -> None:
    names = {name: tuple(p.shape) for name, p in make(4, 2).named_parameters()}
    assert names == {
        "query.weight": (24, 20),
        "key.weight": (12, 20),
        "value.weight": (12, 20),
        "output.weight": (20, 24),
    }
