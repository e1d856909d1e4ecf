"""What every attention has to keep: its weights, its cache, padding and causality agree with one another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from assay.nn.attention.softmax import SoftmaxAttention, shared
from assay.nn.mixer import mixers
from assay.nn.norm import norms
from assay.nn.position import Positions
from assay.nn.position.rotary import Rotary

HIDDEN, DIM, TIME = 20, 6, 11
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("softmax", {"qk_norm": True}),
    "gated": ("gated-attention", {}),
    "gated-values": ("gated-attention", {"position": "value"}),
    "gated-keys": ("gated-attention", {"position": "key", "granularity": "headwise", "activation": "silu"}),
    "gated-queries": ("gated-attention", {"position": "query", "shared": True}),
    "gated-output": ("gated-attention", {"position": "output", "form": "additive"}),
    "relu": ("relu-attention", {}),
    "affine": ("affine-scaled-attention", {}),
    "affine-of-length": ("affine-scaled-attention", {"length": 8, "activation": "sigmoid"}),
    "long-short": ("ls-attention", {"window": 3}),
    "long-short-wide": ("ls-attention", {"window": 8}),
    "short": ("ls-attention", {"window": 2, "num_long": 0}),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[(4, 4), (4, 2), (6, 2), (3, 1)])
def mixer(request: pytest.FixtureRequest, name: str) -> SoftmaxAttention:
    heads, kv_heads = request.param
    component, options = VARIANTS[name]
    built: Any = mixers.build(
        component,
        options,
        hidden_size=HIDDEN,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=DIM,
        layer=0,
        norm=lambda size: norms.build("rms-norm", hidden_size=size),
    )
    built.double().eval()
    for index, parameter in enumerate(built.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=index))
    for buffer in built.buffers():
        buffer.copy_(draw(*buffer.shape, seed=50).sigmoid())
    return built


def causal(time: int = TIME) -> Tensor:
    return torch.ones(time, time, dtype=torch.bool).tril()


def padded(rows: list[int]) -> Tensor:
    """A causal mask for rows with so many tokens of padding on the left; padding sees itself."""
    own = torch.eye(TIME, dtype=torch.bool)
    return torch.stack([causal() & (torch.arange(TIME) >= row) | own for row in rows])[:, None]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rows", [None, [0, 4]])
def test_mixes_the_values_with_its_weights(mixer: SoftmaxAttention, rows: list[int] | None) -> None:
    x, mask = draw(2, TIME, HIDDEN), None if rows is None else padded(rows)
    positions = Positions(Rotary(DIM).rotation(torch.arange(TIME)[None], torch.float64), mask)
    query, key, value = mixer.project(x, positions)
    weights = mixer.weights(x, query, key, mask)
    seen = causal().expand(2, 1, TIME, TIME) if mask is None else mask
    assert not weights.masked_select(~seen).any()
    close(mixer.mix(x, query, key, value, mask), weights @ shared(value, query.shape[1]))


def test_no_mask_means_causal(mixer: SoftmaxAttention) -> None:
    x = draw(2, TIME, HIDDEN)
    close(mixer(x, Positions()), mixer(x, Positions(mask=causal().expand(2, 1, TIME, TIME))))


def test_later_tokens_do_not_reach_earlier_ones(mixer: SoftmaxAttention) -> None:
    x = draw(1, TIME, HIDDEN)
    changed = x.clone()
    changed[:, 7:] = draw(1, TIME - 7, HIDDEN, seed=5)
    close(mixer(changed, Positions())[:, :7], mixer(x, Positions())[:, :7])


class Fixed:
    """A cache of a fixed length, with nonsense where no token is yet."""

    def __init__(self, length: int) -> None:
        self.length, self.taken = length, 0
        self.kept: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if not self.kept:
            self.kept = [draw(*x.shape[:2], self.length, DIM, seed=9) for x in (key, value)]
        for kept, new in zip(self.kept, (key, value), strict=True):
            kept[:, :, self.taken : self.taken + new.shape[2]] = new
        self.taken += key.shape[2]
        return self.kept[0], self.kept[1]


@pytest.mark.parametrize("rows", [None, [0, 4]])
@pytest.mark.parametrize("pieces", [[1] * TIME, [6, 1, 1, 1, 1, 1], [4, 5, 2]], ids=["ones", "prompt", "chunks"])
@pytest.mark.parametrize("length", [None, 15], ids=["growing", "fixed"])
def test_in_pieces_with_a_cache_is_the_whole_at_once(
    mixer: SoftmaxAttention, rows: list[int] | None, pieces: list[int], length: int | None
) -> None:
    x, rotary = draw(2, TIME, HIDDEN), Rotary(DIM)
    mask = None if rows is None else padded(rows)
    whole = mixer(x, Positions(rotary.rotation(torch.arange(TIME)[None], torch.float64), mask))
    cache: Any = DynamicCache() if length is None else Fixed(length)
    seen = causal().expand(2, 1, TIME, TIME) if mask is None else mask
    start, found = 0, []
    for size in pieces:
        end = start + size
        rotation = rotary.rotation(torch.arange(start, end)[None], torch.float64)
        here = seen[:, :, start:end, :end]
        if length is not None:
            here = torch.nn.functional.pad(here, (0, length - end))
        found.append(mixer(x[:, start:end], Positions(rotation, here), cache))
        start = end
    close(torch.cat(found, dim=1), whole)


def test_a_whole_sequence_into_a_longer_cache_needs_no_mask(mixer: SoftmaxAttention) -> None:
    x = draw(2, TIME, HIDDEN)
    cache: Any = Fixed(15)
    close(mixer(x, Positions(), cache), mixer(x, Positions()))


def test_left_padding_changes_no_real_token(mixer: SoftmaxAttention) -> None:
    x = draw(1, TIME, HIDDEN)
    found = mixer(x, Positions(mask=padded([4])))
    close(found[:, 4:], mixer(x[:, 4:], Positions()))
    assert found.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_under_autocast_is_close_to_full_precision(variant: str) -> None:
    component, options = VARIANTS[variant]
    sizes = {"hidden_size": 24, "num_heads": 4, "num_kv_heads": 2, "head_dim": DIM, "layer": 0}
    mixer: Any = mixers.build(component, options, **sizes, norm=torch.nn.LayerNorm).eval()
    for index, parameter in enumerate(mixer.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=index) / 3)
    x = draw(2, 9, 24, seed=3).float()
    wide = mixer(x, Positions())
    with torch.autocast("cpu", torch.bfloat16):
        low = mixer(x, Positions())
    assert low.dtype == torch.bfloat16
    assert ((low - wide).norm() / wide.norm()).item() < 0.03
