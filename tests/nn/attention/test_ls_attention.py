from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.nn.attention.ls_attention import LSAttention
from assay.nn.attention.softmax import SoftmaxAttention
from assay.nn.position import Positions

HIDDEN, DIM = 24, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(num_heads: int = 6, num_kv_heads: int = 3, seed: int = 1, **options: Any) -> LSAttention:
    mixer = LSAttention(HIDDEN, num_heads, num_kv_heads, DIM, 0, torch.nn.LayerNorm, **options).double()
    for index, parameter in enumerate(mixer.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed + index) / 2)
    return mixer


def plain(mixer: LSAttention) -> SoftmaxAttention:
    heads, kv_heads = mixer.query.out_features // DIM, mixer.key.out_features // DIM
    found = SoftmaxAttention(HIDDEN, heads, kv_heads, DIM, 0, torch.nn.LayerNorm).double()
    found.load_state_dict(mixer.state_dict())
    return found


def mixture(mixer: SoftmaxAttention, x: Tensor) -> Tensor:
    """Each head's result, before the output projection."""
    return mixer.mix(x, *mixer.project(x, Positions()), None)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(
    window=st.integers(1, 8), time=st.integers(1, 25), kv_heads=st.integers(1, 3), group=st.integers(1, 2),
    long=st.integers(0, 3), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_is_flex_attention_under_a_mask_by_head(
    window: int, time: int, kv_heads: int, group: int, long: int, seed: int
) -> None:
    long, heads = min(long, kv_heads), kv_heads * group
    mixer, x = make(heads, kv_heads, seed, window=window, num_long=long), draw(2, time, HIDDEN, seed=seed)

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & ((i - j < window) | (h >= (kv_heads - long) * group))

    mask = create_block_mask(seen, 2, heads, time, time, device="cpu")
    query, key, value = mixer.project(x, Positions())
    expected = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
    torch.testing.assert_close(mixture(mixer, x), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("options", [{"window": 9}, {"window": 2, "num_long": 3}])
def test_a_window_of_the_whole_or_long_heads_alone_are_multi_head_attention(options: dict[str, int]) -> None:
    mixer, x = make(**options), draw(2, 9, HIDDEN)
    torch.testing.assert_close(mixer(x, Positions()), plain(mixer)(x, Positions()), rtol=1e-12, atol=1e-14)


def test_a_window_of_one_takes_the_own_value() -> None:
    mixer, x = make(window=1, num_long=1), draw(2, 9, HIDDEN)
    _, _, value = mixer.project(x, Positions())
    torch.testing.assert_close(mixture(mixer, x)[:, :4], value[:, :2].repeat_interleave(2, dim=1))


def test_the_long_heads_are_those_of_multi_head_attention_and_the_short_ones_at_the_start() -> None:
    mixer, x = make(window=4), draw(2, 12, HIDDEN)
    found, expected = mixture(mixer, x), mixture(plain(mixer), x)
    torch.testing.assert_close(found[:, 4:], expected[:, 4:], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[:, :4, :4], expected[:, :4, :4], rtol=1e-12, atol=1e-14)
    assert (found - expected)[:, :4, 4:].abs().amax((0, 2, 3)).min() > 0.1


@pytest.mark.parametrize(("depth", "reach"), [(1, 4), (2, 7), (3, 10)])
def test_without_long_heads_a_token_reaches_a_window_less_one_further_with_each_layer(depth: int, reach: int) -> None:
    torch.manual_seed(0)
    sizes = {"depth": depth, "hidden_size": 16, "num_heads": 2, "vocab_size": 11, "max_length": 16}
    mixer = {"name": "ls-attention", "window": 4, "num_long": 0}
    decoder = Decoder(ModelConfig.parse({**sizes, "mixer": mixer})).double()
    ids = torch.randint(11, (1, 16))
    changed = ids.clone()
    changed[0, 2] = (ids[0, 2] + 1) % 11
    moved = (decoder(ids) != decoder(changed)).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == list(range(2, 2 + reach))


def test_the_order_of_heads_is_immaterial() -> None:
    """Two short heads change places, with their columns of the output projection."""
    mixer, x = make(3, 3, window=3), draw(2, 9, HIDDEN)
    y = mixer(x, Positions())
    order = torch.cat([torch.arange(DIM, 2 * DIM), torch.arange(DIM), torch.arange(2 * DIM, 3 * DIM)])
    for projection in (mixer.query, mixer.key, mixer.value):
        projection.weight.data = projection.weight.data[order]
    mixer.output.weight.data = mixer.output.weight.data[:, order]
    torch.testing.assert_close(mixer(x, Positions()), y, rtol=1e-12, atol=1e-14)


def test_a_single_query_reads_no_more_than_its_window_of_the_short_heads() -> None:
    """What lies further back in the cache may be anything, even not a number."""
    mixer, x = make(window=3, num_long=0), draw(2, 9, HIDDEN)
    whole, cache = mixer(x, Positions()), DynamicCache()
    causal = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, 9, 9)
    mixer(x[:, :8], Positions(mask=causal[:, :, :8, :8]), cache)
    for kept in (cache.layers[0].keys, cache.layers[0].values):
        kept[:, :, :6] = torch.nan
    last = mixer(x[:, 8:], Positions(mask=causal[:, :, 8:]), cache)
    torch.testing.assert_close(last, whole[:, 8:], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("time", "share"), [(1024, 0.254), (4096, 0.128)])
def test_scored_pairs_of_eleven_short_heads_and_a_long_one(time: int, share: float) -> None:
    """Beside those of twelve long heads."""
    seen = torch.ones(time, time, dtype=torch.bool).tril()[None, None]
    short, long = make(window=100).recent(seen).sum().item(), seen.sum().item()
    assert (11 * short + long) / (12 * long) == pytest.approx(share, abs=5e-4)


def test_matrix_products_are_those_of_twice_the_window() -> None:
    """Blocks read two windows of keys for each query: 4 · dim · heads · (2 · window) a token, against time."""

    def flops(mixer: SoftmaxAttention, time: int) -> int:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            query, key, value = (torch.zeros(1, 4, time, DIM) for _ in range(3))
            mixer.mix(torch.zeros(1, time, HIDDEN), query, key, value, None)
        return counter.get_total_flops()

    with torch.device("meta"):
        sizes = (HIDDEN, 4, 4, DIM, 0, torch.nn.LayerNorm)
        short, full = LSAttention(*sizes, window=16, num_long=0), SoftmaxAttention(*sizes)
    assert flops(full, 256) == 4 * DIM * 4 * 256 * 256
    assert flops(short, 256) == 4 * DIM * 4 * 256 * 32


def test_more_long_heads_than_there_are() -> None:
    with pytest.raises(UserError, match="num_long=4 is more than the 3 key and value heads"):
        make(num_long=4)
