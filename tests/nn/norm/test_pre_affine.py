from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.nn.norm import norms
from assay.nn.norm.pre_affine import PreAffine
from assay.nn.norm.rms_norm import RMSNorm


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(gain: Tensor, scale: Tensor, eps: float = 0.0) -> PreAffine:
    norm = PreAffine(gain.numel(), eps=eps).to(gain.dtype)
    norm.weight.data.copy_(gain)
    norm.input_scale.data.copy_(scale)
    return norm


def test_worked_number() -> None:
    """A learned outlier: of four equal features the other three keep one part in 500."""
    norm = make(torch.ones(4), torch.tensor([1000.0, 1, 1, 1]))
    y = norm(torch.ones(4))
    torch.testing.assert_close(y, torch.tensor([2.0, 0.002, 0.002, 0.002]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_as_rmsnorm_bit_for_bit(dtype: torch.dtype) -> None:
    norm, x = norms.build("pre-affine", hidden_size=24).to(dtype), 30 * draw(5, 24, dtype=dtype)
    assert torch.equal(norm(x), RMSNorm(24).to(dtype)(x))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.integers(1, 4), eps=st.sampled_from([0.0, 1e-6, 0.1]))
def test_is_torchs_norm_of_the_scaled_input_with_its_gradients(seed: int, tokens: int, eps: float) -> None:
    ours = make(draw(6, seed=seed + 1), draw(6, seed=seed + 2), eps)
    theirs = nn.RMSNorm(6, eps=eps, dtype=torch.float64)
    theirs.weight.data.copy_(ours.weight.data)
    x, towards = draw(tokens, 6, seed=seed), draw(tokens, 6, seed=seed + 3)
    scaled = (ours.input_scale.detach() * x).requires_grad_()
    y, expected = ours(x), theirs(scaled)
    y.backward(towards)
    expected.backward(towards)
    torch.testing.assert_close(y.detach(), expected.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.input_scale.grad, (scaled.grad * x).sum(0), rtol=1e-8, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), factor=st.floats(1e-3, 1e3))
def test_only_the_direction_of_the_scale_counts(seed: int, factor: float) -> None:
    gain, scale, x = draw(6, seed=seed + 1), draw(6, seed=seed + 2), draw(4, 6, seed=seed)
    torch.testing.assert_close(make(gain, factor * scale)(x), make(gain, scale)(x), rtol=1e-9, atol=1e-12)


def test_the_scale_is_not_a_gain() -> None:
    gain, scale, x = draw(6, seed=1), draw(6, seed=2).abs() + 0.5, draw(4, 6)
    assert (make(gain, scale)(x) - make(gain * scale, torch.ones_like(scale))(x)).abs().max() > 0.05
