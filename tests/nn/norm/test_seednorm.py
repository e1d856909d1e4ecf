from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.norm import norms
from assay.nn.norm.rms_norm import RMSNorm
from assay.nn.norm.seednorm import SeeDNorm
from assay.optim import build_optimizer, optimizers
from assay.slots import Component


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make(gamma: Tensor, alpha: Tensor, beta: Tensor, num_heads: int = 1, eps: float = 0.0) -> SeeDNorm:
    norm = SeeDNorm(gamma.numel(), num_heads=num_heads, eps=eps).to(gamma.dtype)
    norm.weight.data.copy_(gamma)
    norm.alpha.data.copy_(alpha)
    norm.beta.data.copy_(beta)
    return norm


def random_norm(hidden: int, num_heads: int = 1, seed: int = 10, eps: float = 0.0) -> SeeDNorm:
    return make(*(draw(hidden, seed=seed + i) for i in range(3)), num_heads, eps)


def by_hand(norm: SeeDNorm, token: list[float]) -> list[float]:
    """The definition with Python's own numbers, one feature at a time."""
    gamma, alpha, beta = (p.tolist() for p in (norm.weight, norm.alpha, norm.beta))
    size = len(token)
    rms = math.sqrt(sum(value**2 for value in token) / size + norm.eps)
    width = size // norm.num_heads
    result = []
    for i, value in enumerate(token):
        first = i // width * width
        s = math.tanh(sum(token[k] * beta[k] for k in range(first, first + width)))
        result.append((gamma[i] + alpha[i] * s) * value / rms)
    return result


@pytest.mark.parametrize(
    ("num_heads", "expected"),
    [(1, [0.5848, 1.1697, 0.9848, 1.9697]), (2, [0.4399, 0.8797, 0.9520, 1.9040])],
)
def test_worked_numbers(num_heads: int, expected: list[float]) -> None:
    norm = make(torch.ones(4), torch.tensor([1, 1, 0.5, 0.5]), torch.tensor([0.1, 0, 0, 0.1]), num_heads=num_heads)
    y = norm(torch.tensor([1.0, 2.0, 2.0, 4.0]))
    torch.testing.assert_close(y, torch.tensor(expected), atol=5.1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    num_heads=st.integers(1, 4),
    width=st.integers(1, 5),
    tokens=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    eps=st.sampled_from([0.0, 1e-6, 0.1]),
)
def test_is_the_definition(num_heads: int, width: int, tokens: int, seed: int, eps: float) -> None:
    hidden = num_heads * width
    norm, x = random_norm(hidden, num_heads, seed + 1, eps), draw(tokens, hidden, seed=seed)
    expected = torch.tensor([by_hand(norm, token) for token in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_heads", [1, 4])
def test_beta_zero_or_alpha_zero_is_rmsnorm_bit_for_bit(num_heads: int) -> None:
    gamma, x = draw(16, seed=1, dtype=torch.float32), draw(5, 16, dtype=torch.float32)
    plain = RMSNorm(16)
    plain.weight.data.copy_(gamma)
    zero, other = torch.zeros(16), draw(16, seed=2, dtype=torch.float32)
    assert torch.equal(make(gamma, other, zero, num_heads, 1e-6)(x), plain(x))
    assert torch.equal(make(gamma, zero, other, num_heads, 1e-6)(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_as_rmsnorm(dtype: torch.dtype) -> None:
    norm, x = norms.build("seednorm", hidden_size=24).to(dtype), draw(5, 24, dtype=dtype)
    y = norm(x)
    assert y.dtype == dtype
    assert torch.equal(y, RMSNorm(24).to(dtype)(x))
    torch.testing.assert_close(y, nn.RMSNorm(24, eps=1e-6, dtype=dtype)(x))


def test_scaling_the_input_acts_only_through_the_gate() -> None:
    norm, x = random_norm(6), draw(4, 6)
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    for k in (0.01, 1.0, 30.0):
        gate = torch.tanh(k * (x @ norm.beta))[:, None]
        torch.testing.assert_close(norm(k * x), (norm.weight + norm.alpha * gate) * unit)
    limit = (norm.weight + norm.alpha * torch.sign(x @ norm.beta)[:, None]) * unit
    torch.testing.assert_close(norm(1e6 * x), limit)


def test_the_opposite_input_flips_the_gate() -> None:
    norm, x = random_norm(6), draw(4, 6)
    flipped = make(norm.weight, -norm.alpha, norm.beta)
    torch.testing.assert_close(norm(-x), -flipped(x), rtol=1e-12, atol=1e-14)
    assert (norm(-x) + norm(x)).abs().max() > 0.1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e6), num_heads=st.sampled_from([1, 2, 3, 6]))
def test_bounded_by_gamma_plus_alpha(seed: int, scale: float, num_heads: int) -> None:
    norm, x = random_norm(6, num_heads, seed + 1), scale * draw(4, 6, seed=seed)
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    bound = (norm.weight.abs() + norm.alpha.abs()) * unit.abs()
    assert torch.all(norm(x).abs() <= bound * (1 + 1e-12))


def test_one_head_per_feature_gates_each_feature_by_itself() -> None:
    norm, x = random_norm(6, num_heads=6), draw(4, 6)
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    expected = (norm.weight + norm.alpha * torch.tanh(x * norm.beta)) * unit
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-14)


def test_gradients_at_the_start() -> None:
    x, towards = draw(7, 6), draw(7, 6, seed=1)
    norm, plain = SeeDNorm(6, eps=0.0).double(), nn.RMSNorm(6, eps=0.0, dtype=torch.float64)
    for module in (norm, plain):
        module(x).backward(towards)
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    assert torch.equal(norm.alpha.grad, torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(norm.weight.grad, plain.weight.grad)
    per_token = (towards * unit).sum(-1, keepdim=True)
    torch.testing.assert_close(norm.beta.grad, (per_token * x).sum(0))


def test_alpha_moves_once_beta_has() -> None:
    x, towards = draw(7, 6), draw(7, 6, seed=1)
    norm = SeeDNorm(6).double()
    sgd = torch.optim.SGD(norm.parameters(), lr=0.1)
    norm(x).backward(towards)
    sgd.step()
    assert torch.equal(norm.alpha, torch.ones(6, dtype=torch.float64))
    sgd.zero_grad()
    norm(x).backward(towards)
    assert norm.alpha.grad.abs().min() > 0


def test_alpha_and_beta_both_zero_never_learn() -> None:
    zero = torch.zeros(6, dtype=torch.float64)
    norm = make(torch.ones(6, dtype=torch.float64), zero, zero)
    norm(draw(7, 6)).backward(draw(7, 6, seed=1))
    assert torch.equal(norm.alpha.grad, zero)
    assert torch.equal(norm.beta.grad, zero)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_gradients_by_finite_differences(num_heads: int) -> None:
    norm = random_norm(6, num_heads, eps=1e-3)
    x = draw(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_variance_of_the_score_is_the_width_of_a_head(num_heads: int) -> None:
    """Over all x and β with entries ±1, where rms = 1 and γ = 0, the score is atanh(y / x)."""
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    scores = torch.stack([torch.atanh(make(zero, one, beta, num_heads)(signs) / signs) for beta in signs])
    variance = scores.var(dim=(0, 1), correction=0)
    torch.testing.assert_close(variance, torch.full((4,), 4 / num_heads, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_low_precision_is_the_float32_result_rounded(dtype: torch.dtype, num_heads: int) -> None:
    low = random_norm(64, num_heads, eps=1e-6).to(dtype)
    wide = make(low.weight.float(), low.alpha.float(), low.beta.float(), num_heads, 1e-6)
    x = 3 * draw(9, 64, dtype=dtype)
    assert torch.equal(low(x), wide(x.float()).to(dtype))


@pytest.mark.parametrize("num_heads", [0, -2, 4, 12])
def test_heads_must_divide_the_features(num_heads: int) -> None:
    with pytest.raises(UserError, match=rf"num_heads={num_heads} does not divide 6"):
        norms.build("seednorm", {"num_heads": num_heads}, hidden_size=6)


def test_alpha_starts_where_it_is_told_and_never_at_zero() -> None:
    norm, x = norms.build("seednorm", {"alpha": 10}, hidden_size=4), draw(3, 4, dtype=torch.float32)
    assert torch.equal(norm.alpha, torch.full((4,), 10.0))
    assert torch.equal(norms.build("seednorm", hidden_size=4).alpha, torch.ones(4))
    assert torch.equal(norm(x), RMSNorm(4)(x))
    for start in (0, -1.0):
        with pytest.raises(UserError, match=rf"option alpha={start}"):
            norms.build("seednorm", {"alpha": start}, hidden_size=4)


def test_without_a_gradient_alpha_decays_and_gamma_stays() -> None:
    norm = make(torch.ones(4), torch.full((4,), 2.0), torch.full((4,), 3.0))
    options = {"name": "adamw", "lr": 0.1, "weight_decay": 0.5}
    optimizer = build_optimizer(Component.parse(optimizers, options), norm, lr=0.0)
    for _ in range(3):
        for parameter in norm.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    torch.testing.assert_close(norm.alpha.detach(), torch.full((4,), 2 * 0.95**3))
    torch.testing.assert_close(norm.beta.detach(), torch.full((4,), 3 * 0.95**3))
    assert torch.equal(norm.weight, torch.ones(4))


def test_weight_decay_reaches_alpha_and_beta_but_not_gamma() -> None:
    names = {name for name, _ in SeeDNorm(4).named_parameters()}
    assert names - SeeDNorm.weight_decay_parameters == {"weight"}
    assert names >= SeeDNorm.weight_decay_parameters
