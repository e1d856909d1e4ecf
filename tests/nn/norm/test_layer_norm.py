from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.nn.norm import norms
from assay.nn.norm.layer_norm import LayerNorm


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalized(x: Tensor, eps: float = 0.0) -> Tensor:
    """The definition, independent of torch's kernel."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (torch.var(x, dim=-1, correction=0, keepdim=True) + eps).sqrt()


def affine(gain: Tensor, bias: Tensor, eps: float) -> LayerNorm:
    norm = LayerNorm(gain.numel(), eps=eps).double()
    norm.weight.data.copy_(gain)
    norm.bias.data.copy_(bias)
    return norm


def test_worked_number() -> None:
    y = LayerNorm(4)(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    torch.testing.assert_close(y, torch.tensor([-1.0690, -0.5345, 0.0, 1.6036]), atol=5e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    eps=st.sampled_from([1e-5, 1e-2]),
)
def test_is_the_definition_with_its_backward(shape: list[int], seed: int, eps: float) -> None:
    hidden = shape[-1]
    gain, bias = draw(hidden, seed=seed + 1), draw(hidden, seed=seed + 2)
    norm = affine(gain, bias, eps)
    x, towards = draw(*shape, seed=seed).requires_grad_(), draw(*shape, seed=seed + 3)
    y = norm(x)
    y.backward(towards)
    with torch.no_grad():
        hat = normalized(x, eps)
        std = (torch.var(x, dim=-1, correction=0, keepdim=True) + eps).sqrt()
        d = gain * towards
        dx = (d - d.mean(-1, keepdim=True) - hat * (d * hat).mean(-1, keepdim=True)) / std
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(y.detach(), gain * hat + bias, **close)
    torch.testing.assert_close(x.grad, dx, **close)
    torch.testing.assert_close(norm.weight.grad, (towards * hat).reshape(-1, hidden).sum(0), **close)
    torch.testing.assert_close(norm.bias.grad, towards.reshape(-1, hidden).sum(0), **close)


def test_mean_is_zero_and_mean_square_is_var_over_var_plus_eps() -> None:
    x, eps = draw(5, 12), 0.3
    y = LayerNorm(12, eps=eps).double()(x)
    var = torch.var(x, dim=-1, correction=0)
    torch.testing.assert_close(y.mean(-1), torch.zeros(5, dtype=torch.float64), atol=1e-14, rtol=0)
    torch.testing.assert_close(y.square().mean(-1), var / (var + eps), rtol=1e-12, atol=0)


def test_one_feature_gives_the_bias_and_two_give_plus_and_minus_one() -> None:
    one = affine(torch.tensor([3.0]), torch.tensor([0.75]), 1e-5)
    assert torch.equal(one(draw(4, 1)), torch.full((4, 1), 0.75, dtype=torch.float64))
    x = draw(6, 2)
    y = LayerNorm(2, eps=0.0).double()(x)
    expected = torch.sign(x - x.flip(-1))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), negative=st.booleans())
def test_invariant_to_shift_and_scale(seed: int, scale: float, shift: float, negative: bool) -> None:
    x, norm = draw(3, 8, seed=seed), LayerNorm(8, eps=0.0).double()
    c = -scale if negative else scale
    torch.testing.assert_close(norm(c * x + shift), (-1 if negative else 1) * norm(x), rtol=1e-6, atol=1e-8)


def test_invariant_to_rescaling_the_matrix_before_it_but_not_one_row() -> None:
    matrix, v, x = draw(6, 4, seed=1), draw(4, seed=2), draw(5, 4)
    norm = affine(draw(6, seed=3), draw(6, seed=4), 0.0)
    y = norm(x @ matrix.T)
    torch.testing.assert_close(norm(x @ (2.5 * matrix + v).T), y, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(norm(7 * x @ matrix.T), y, rtol=1e-10, atol=1e-12)
    one_row = matrix.clone()
    one_row[0] *= 2.5
    assert (norm(x @ one_row.T) - y).abs().max() > 0.1


def test_gradient_sums_to_zero_and_is_orthogonal_to_the_result() -> None:
    x = draw(4, 7).requires_grad_()
    y = LayerNorm(7, eps=0.0).double()(x)
    y.backward(draw(4, 7, seed=1))
    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(x.grad.sum(-1), zero, atol=1e-12, rtol=0)
    torch.testing.assert_close((x.grad * y.detach()).sum(-1), zero, atol=1e-12, rtol=0)


def test_tokens_do_not_see_each_other() -> None:
    x, norm = draw(6, 9), affine(draw(9, seed=1), draw(9, seed=2), 1e-5)
    y = norm(x)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.equal(norm(x[order]), y[order])
    assert torch.equal(torch.cat([norm(row[None]) for row in x]), y)


def test_a_constant_vector_gives_the_bias_and_a_finite_gradient() -> None:
    bias, towards = draw(5, seed=1), draw(5, seed=2)
    norm = affine(torch.ones(5), bias, 1e-5)
    x = torch.full((5,), 2.0, dtype=torch.float64).requires_grad_()
    y = norm(x)
    y.backward(towards)
    assert torch.equal(y, bias)
    torch.testing.assert_close(x.grad, (towards - towards.mean()) / 1e-5**0.5, rtol=1e-10, atol=1e-10)


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    x = (4096 + draw(3, 256)).float()
    y = LayerNorm(256, eps=0.0)(x)
    torch.testing.assert_close(y, normalized(x.double()).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_the_float32_result_rounded(dtype: torch.dtype) -> None:
    x = (100 * draw(5, 300)).to(dtype)
    low, wide = LayerNorm(300).to(dtype)(x), LayerNorm(300)(x.float())
    step = torch.finfo(dtype).eps
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), wide, rtol=0.51 * step, atol=1e-6)


def test_without_bias() -> None:
    norm = norms.build("layer-norm", {"bias": False, "eps": 0.5}, hidden_size=3)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    x = draw(2, 3).float()
    torch.testing.assert_close(norm(x), normalized(x, 0.5))


def test_start_and_default_eps() -> None:
    norm = norms.build("layer-norm", hidden_size=3)
    assert norm.eps == 1e-5
    assert torch.equal(norm.weight, torch.ones(3))
    assert torch.equal(norm.bias, torch.zeros(3))
