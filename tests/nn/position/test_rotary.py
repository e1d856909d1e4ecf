from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from assay.errors import UserError
from assay.nn.position import Positions, positions
from assay.nn.position.rotary import Rotary

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def llama(head_dim: int, theta: float, scaling: dict[str, Any] | None) -> LlamaRotaryEmbedding:
    rope = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
    return LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=2 * head_dim,
            num_attention_heads=2,
            head_dim=head_dim,
            max_position_embeddings=8192,
            rope_parameters=rope,
        )
    )


def turn(rotary: Rotary, x: Tensor, ids: list[int]) -> Tensor:
    return Positions(rotary.rotation(torch.tensor([ids]), x.dtype)).rotate(x)


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3], ids=["plain", "linear", "llama3"])
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10000.0), (128, 500000.0), (6, 100.0)])
def test_turns_as_llama_does(head_dim: int, theta: float, scaling: dict[str, Any] | None) -> None:
    ours = positions.build("rotary", {"theta": theta, "scaling": scaling}, head_dim=head_dim)
    theirs = llama(head_dim, theta, scaling)
    exact = {"rtol": 0, "atol": 0} if scaling is not LLAMA3 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(ours.frequencies, theirs.inv_freq, rtol=min(exact["rtol"], 1e-6), atol=0)
    ids = torch.tensor([[0, 1, 2, 500, 4000], [7, 8, 9, 10, 11]])
    query, key = draw(2, 3, 5, head_dim).float(), draw(2, 1, 5, head_dim, seed=1).float()
    cos, sin = theirs(query, ids)
    rotated = apply_rotary_pos_emb(query, key, cos, sin)
    told = Positions(ours.rotation(ids, torch.float32))
    torch.testing.assert_close(told.rotate(query), rotated[0], **exact)
    torch.testing.assert_close(told.rotate(key), rotated[1], **exact)


def test_llama3_keeps_short_wavelengths_stretches_long_ones_and_passes_between() -> None:
    """The published rule in wavelengths, one frequency at a time."""
    plain = Rotary(128, theta=500000.0).frequencies.tolist()
    scaled = Rotary(128, theta=500000.0, scaling=LLAMA3).frequencies.tolist()
    kinds = set()
    for before, after in zip(plain, scaled, strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < 512 / 4.0:
            kinds.add("kept")
            expected = before
        elif wavelength > 512 / 1.0:
            kinds.add("stretched")
            expected = before / 8.0
        else:
            kinds.add("between")
            smooth = (512 / wavelength - 1.0) / (4.0 - 1.0)
            expected = (1 - smooth) * before / 8.0 + smooth * before
        assert after == pytest.approx(expected, rel=1e-5)
    assert kinds == {"kept", "stretched", "between"}


def test_older_configurations_call_the_rule_type() -> None:
    old = Rotary(8, scaling={"type": "linear", "factor": 4.0})
    assert torch.equal(old.frequencies, Rotary(8).frequencies / 4)


def test_linear_scaling_is_position_over_factor() -> None:
    x = draw(1, 1, 3, 16)
    scaled = turn(Rotary(16, scaling=LINEAR), x, [0, 4, 40])
    torch.testing.assert_close(scaled, turn(Rotary(16), x, [0, 1, 10]), rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(half=st.integers(1, 8), place=st.integers(0, 300), seed=st.integers(0, 2**31))
def test_is_multiplication_by_a_complex_number(half: int, place: int, seed: int) -> None:
    x = draw(1, 2, 1, 2 * half, seed=seed)
    angles = torch.tensor([place * 10000.0 ** (-2 * j / (2 * half)) for j in range(half)], dtype=torch.float64)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angles)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(turn(Rotary(2 * half), x, [place]), expected, rtol=0, atol=3e-4)


@settings(max_examples=20, deadline=None)
@given(p=st.integers(0, 200), s=st.integers(0, 200), shift=st.integers(0, 200), seed=st.integers(0, 2**31))
def test_agreement_depends_on_the_distance_alone(p: int, s: int, shift: int, seed: int) -> None:
    rotary, q, k = Rotary(16), draw(1, 1, 1, 16, seed=seed), draw(1, 1, 1, 16, seed=seed + 1)
    here = (turn(rotary, q, [p]) * turn(rotary, k, [s])).sum()
    there = (turn(rotary, q, [p + shift]) * turn(rotary, k, [s + shift])).sum()
    torch.testing.assert_close(here, there, rtol=0, atol=2e-3)


def test_keeps_lengths_and_the_first_token() -> None:
    x = draw(2, 3, 4, 8)
    y = turn(Rotary(8), x, [0, 1, 50, 700])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    assert torch.equal(y[:, :, 0], x[:, :, 0])
    assert (y[:, :, 1:] - x[:, :, 1:]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_the_network_keeps_the_frequencies(dtype: torch.dtype) -> None:
    ids = torch.tensor([[1000, 4000]])
    cos, sin = Rotary(64).to(dtype).rotation(ids, torch.float32)
    expected = Rotary(64).rotation(ids, torch.float32)
    assert torch.equal(cos, expected[0])
    assert torch.equal(sin, expected[1])


def test_rotation_has_the_asked_precision() -> None:
    rotary, ids = Rotary(64), torch.tensor([[0, 5, 900]])
    wide = rotary.rotation(ids, torch.float32)
    for low, exact in zip(rotary.rotation(ids, torch.bfloat16), wide, strict=True):
        assert torch.equal(low, exact.to(torch.bfloat16))


def test_made_on_the_meta_device_it_gets_its_frequencies_when_it_lands() -> None:
    with torch.device("meta"):
        rotary = Rotary(16, scaling=LLAMA3)
    landed = rotary.to_empty(device="cpu")
    assert torch.equal(landed.frequencies, Rotary(16, scaling=LLAMA3).frequencies)


def test_frequencies_are_not_saved() -> None:
    assert not Rotary(8).state_dict()


@pytest.mark.parametrize(
    ("head_dim", "scaling", "message"),
    [
        (7, None, "needs an even head dimension, not 7"),
        (8, {"rope_type": "yarn", "factor": 2.0}, "knows the scaling rules linear and llama3, not 'yarn'"),
        (8, {"factor": 2.0}, "knows the scaling rules linear and llama3, not None"),
        (8, {"rope_type": "linear"}, "the scaling rule linear lacks factor"),
        (
            8,
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
            "the scaling rule llama3 lacks original_max_position_embeddings, high_freq_factor",
        ),
    ],
)
def test_what_cannot_be_used(head_dim: int, scaling: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        positions.build("rotary", {"scaling": scaling}, head_dim=head_dim)
