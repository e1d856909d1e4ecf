from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from assay.nn.norm import norms
from assay.nn.norm.rms_norm import RMSNorm, rms_normalize


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def with_gain(gain: Tensor, eps: float = 1e-6) -> RMSNorm:
    norm = RMSNorm(gain.numel(), eps=eps).to(gain.dtype)
    norm.weight.data.copy_(gain)
    return norm


def test_worked_number() -> None:
    y = RMSNorm(2, eps=0.0)(torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(y, torch.tensor([0.8485, 1.1314]), atol=5e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    scale=st.floats(0.1, 1e3),
    eps=st.sampled_from([0.0, 1e-6, 1e-2]),
)
def test_value_and_gradients_are_those_of_torch(shape: list[int], seed: int, scale: float, eps: float) -> None:
    hidden = shape[-1]
    ours = with_gain(draw(hidden, seed=seed + 1), eps)
    theirs = nn.RMSNorm(hidden, eps=eps, dtype=torch.float64)
    theirs.weight.data.copy_(ours.weight.data)
    x, towards = scale * draw(*shape, seed=seed), draw(*shape, seed=seed + 2)
    results = []
    for norm in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        y.backward(towards)
        results.append((y.detach(), leaf.grad, norm.weight.grad))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bit_for_bit_the_norm_of_llama(dtype: torch.dtype) -> None:
    ours, theirs = with_gain(draw(64, seed=1, dtype=dtype)), LlamaRMSNorm(64, eps=1e-6).to(dtype)
    theirs.weight.data.copy_(ours.weight.data)
    x = 30 * draw(7, 64, dtype=dtype)
    y = ours(x)
    assert y.dtype == dtype
    assert torch.equal(y, theirs(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_the_float32_result_rounded(dtype: torch.dtype) -> None:
    x = draw(5, 300, dtype=dtype)
    assert torch.equal(RMSNorm(300).to(dtype)(x), RMSNorm(300)(x.float()).to(dtype))


def test_squares_do_not_overflow_half_precision() -> None:
    x = torch.full((4,), 300.0, dtype=torch.float16)
    assert torch.equal(RMSNorm(4).half()(x), torch.ones(4, dtype=torch.float16))


def test_float64_keeps_its_precision() -> None:
    x = draw(3, 17)
    exact = x / x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(rms_normalize(x, 0.0), exact, rtol=1e-14, atol=0)


@settings(max_examples=30, deadline=None)
@given(
    hidden=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    factor=st.floats(1e-6, 1e6),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_only_the_direction_counts(hidden: int, seed: int, factor: float, sign: float) -> None:
    x, norm = draw(2, hidden, seed=seed), with_gain(draw(hidden, seed=seed + 1), 0.0)
    torch.testing.assert_close(norm(sign * factor * x), sign * norm(x), rtol=1e-10, atol=1e-12)


def test_rms_of_the_result_is_one_and_norming_twice_changes_nothing() -> None:
    x = 50 * draw(4, 33)
    y = rms_normalize(x, 0.0)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(rms_normalize(y, 0.0), y, rtol=1e-12, atol=1e-14)


def test_gradient_is_orthogonal_to_the_input() -> None:
    x = draw(6, 9).requires_grad_()
    with_gain(draw(9, seed=1), 0.0)(x).backward(draw(6, 9, seed=2))
    assert x.grad is not None
    assert x.grad.abs().max() > 0.1
    torch.testing.assert_close((x * x.grad).sum(-1), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)


def test_gradients_by_finite_differences() -> None:
    norm = with_gain(draw(5, seed=1), 1e-3)
    assert torch.autograd.gradcheck(norm, (draw(3, 5).requires_grad_(),))


def test_a_zero_vector_stays_zero() -> None:
    assert torch.equal(RMSNorm(8)(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_gain_folds_into_the_next_linear_map() -> None:
    gain, matrix, x = draw(6, seed=1), draw(4, 6, seed=2), draw(3, 6)
    folded = rms_normalize(x, 1e-6) @ (matrix * gain).T
    torch.testing.assert_close(with_gain(gain)(x) @ matrix.T, folded, rtol=1e-12, atol=1e-14)


def test_gain_preconditions_the_effective_matrix() -> None:
    """One small step on W and γ moves u_j = γ_j w_j by −lr (γ_j² I + w_j w_jᵀ) G_j and keeps γ_j² − |w_j|²."""
    norm = with_gain(torch.tensor([2.0, -0.5], dtype=torch.float64))
    linear = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    linear.weight.data.copy_(torch.tensor([[3.0, 1.0], [4.0, -2.0]]))
    x, towards = draw(5, 2), draw(5, 2, seed=1)

    def effective() -> Tensor:
        return (linear.weight * norm.weight).detach()

    def conserved() -> Tensor:
        return (norm.weight.square() - linear.weight.square().sum(0)).detach()

    before, kept = effective(), conserved()
    gradient = towards.T @ rms_normalize(x, norm.eps)
    (linear(norm(x)) * towards).sum().backward()
    lr = 1e-6
    with torch.no_grad():
        for parameter in (norm.weight, linear.weight):
            parameter -= lr * parameter.grad
    first = torch.tensor([[13.0, 12.0], [12.0, 20.0]], dtype=torch.float64)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(first), torch.tensor([4.0, 29.0], dtype=torch.float64), rtol=1e-12, atol=0
    )
    second = 0.25 * torch.eye(2) + torch.tensor([[1.0, -2.0], [-2.0, 4.0]], dtype=torch.float64)
    moved = torch.stack((-first @ gradient[:, 0], -second @ gradient[:, 1]), dim=1)
    torch.testing.assert_close((effective() - before) / lr, moved, rtol=1e-4, atol=1e-4)
    assert (conserved() - kept).abs().max() < 1e-8


def test_without_gain() -> None:
    norm, x = norms.build("rms-norm", {"gain": False, "eps": 0.5}, hidden_size=7), draw(3, 7, dtype=torch.float32)
    assert not list(norm.parameters())
    assert torch.equal(norm(x), RMSNorm(7, eps=0.5)(x))


def test_name_and_start() -> None:
    norm = norms.build("rms-norm", hidden_size=5)
    assert isinstance(norm, RMSNorm)
    assert norm.eps == 1e-6
    assert torch.equal(norm.weight, torch.ones(5))
    assert norms.build("rms-norm", {"eps": 0.25}, hidden_size=5).eps == 0.25
