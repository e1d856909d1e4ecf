from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.errors import UserError
from assay.nn.norm import norms
from assay.nn.norm.powernorm import PowerNorm


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(hidden: int, groups: int = 0, alpha: float = 0.9, warmup: int = 0, eps: float = 0.0) -> PowerNorm:
    norm = PowerNorm(hidden, groups=groups, alpha=alpha, warmup=warmup, eps=eps).double()
    norm.weight.data.copy_(draw(hidden, seed=100))
    norm.bias.data.copy_(draw(hidden, seed=101))
    return norm


def step(norm: PowerNorm, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of ⟨y, dy⟩ with respect to x."""
    x = x.clone().requires_grad_()
    norm.zero_grad()
    y = norm(x)
    y.backward(dy)
    assert x.grad is not None
    return y.detach(), x.grad


class ByHand:
    """One feature, with Python's own numbers and the recursion of ν in the form of the paper."""

    def __init__(self, gamma: float, beta: float, alpha: float, warmup: int, eps: float) -> None:
        self.gamma, self.beta, self.alpha, self.warmup, self.eps = gamma, beta, alpha, warmup, eps
        self.phi, self.nu, self.steps = 1.0, 0.0, 0

    def step(self, xs: list[float], dys: list[float]) -> tuple[list[float], list[float]]:
        self.steps += 1
        count = len(xs)
        m = sum(x**2 for x in xs) / count
        psi = math.sqrt((m if self.steps <= self.warmup else self.phi) + self.eps)
        zs = [x / psi for x in xs]
        if self.steps < self.warmup:
            self.phi = self.phi * (self.steps - 1) / self.steps + m / self.steps
        self.phi = self.alpha * self.phi + (1 - self.alpha) * m
        ds = [dy * self.gamma for dy in dys]
        dxs = [(d - self.nu * z) / psi for d, z in zip(ds, zs, strict=True)]
        gamma_t = sum(z * z for z in zs) / count
        lambda_t = sum(d * z for d, z in zip(ds, zs, strict=True)) / count
        self.nu = self.nu * (1 - (1 - self.alpha) * gamma_t) + (1 - self.alpha) * lambda_t
        return [self.gamma * z + self.beta for z in zs], dxs


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.integers(1, 4),
    tokens=st.integers(1, 5),
    warmup=st.integers(0, 5),
    alpha=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    eps=st.sampled_from([1e-5, 0.1]),
    seed=st.integers(0, 2**20),
)
def test_is_the_definition_over_steps(
    hidden: int, tokens: int, warmup: int, alpha: float, eps: float, seed: int
) -> None:
    norm = make(hidden, alpha=alpha, warmup=warmup, eps=eps)
    features = [
        ByHand(g, b, alpha, warmup, eps) for g, b in zip(norm.weight.tolist(), norm.bias.tolist(), strict=True)
    ]
    for number in range(6):
        x, dy = draw(2, tokens, hidden, seed=seed + 2 * number), draw(2, tokens, hidden, seed=seed + 2 * number + 1)
        y, dx = step(norm, x, dy)
        for index, feature in enumerate(features):
            ys, dxs = feature.step(x[..., index].flatten().tolist(), dy[..., index].flatten().tolist())
            torch.testing.assert_close(y[..., index].flatten(), torch.tensor(ys, dtype=torch.float64))
            torch.testing.assert_close(dx[..., index].flatten(), torch.tensor(dxs, dtype=torch.float64))
        assert norm.second_moment.tolist() == pytest.approx([f.phi for f in features])
        assert norm.gradient_mean.tolist() == pytest.approx([f.nu for f in features])


def test_worked_numbers_of_the_published_module() -> None:
    """Constant inputs 1, 2, 3 after a warm-up of 2."""
    norm = PowerNorm(1, groups=0, warmup=2, eps=0.0)
    found = []
    for value in (1.0, 2.0, 3.0):
        y = norm(torch.full((4, 1), value))
        found.append((y[0].item(), norm.second_moment.item()))
    assert found == [pytest.approx(pair, abs=1e-4) for pair in ((1, 1.0), (1, 1.3), (2.6312, 2.07))]
    norm.eval()
    assert norm(torch.tensor([[3.0]])).item() == pytest.approx(2.0851, abs=1e-4)


def test_without_warm_up_the_first_step_is_the_identity() -> None:
    norm = PowerNorm(3, groups=0, warmup=0, eps=0.0).double()
    x = draw(5, 3)
    assert torch.equal(norm(x), x)
    norm = PowerNorm(1, groups=0, warmup=0, eps=0.0).double()
    x = torch.tensor([[0.8485], [-2.0]], dtype=torch.float64)
    step(norm, x, torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    assert norm.gradient_mean.item() == pytest.approx(0.1 * 0.8485 / 2)


def test_on_the_same_data_again_and_again_the_gradient_becomes_the_exact_one() -> None:
    norm, x, dy = make(4, warmup=10_000), draw(3, 5, 4), draw(3, 5, 4, seed=1)
    exact = x.clone().requires_grad_()
    rms = exact.square().mean((0, 1)).sqrt()
    (norm.weight * exact / rms + norm.bias).backward(dy)
    assert exact.grad is not None
    _, first = step(norm, x, dy)
    assert (first - exact.grad).abs().max() > 0.05
    for _ in range(300):
        _, dx = step(norm, x, dy)
    torch.testing.assert_close(dx, exact.grad, rtol=1e-9, atol=1e-11)


def test_gradients_of_gain_and_offset_are_exact() -> None:
    norm, x, dy = make(4, warmup=0), draw(3, 5, 4), draw(3, 5, 4, seed=1)
    step(norm, x, dy)
    scale = norm.second_moment.clone()
    step(norm, x, dy)
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    torch.testing.assert_close(norm.weight.grad, (dy * x / scale.sqrt()).sum((0, 1)))
    torch.testing.assert_close(norm.bias.grad, dy.sum((0, 1)))


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_the_layer_scale_is_torchs_rms_norm_of_each_group_before_it(groups: int) -> None:
    norm, plain = make(6, groups=groups, warmup=1, eps=1e-5), make(6, warmup=1, eps=1e-5)
    for number in range(3):
        x, dy = draw(2, 4, 6, seed=number), draw(2, 4, 6, seed=10 + number)
        y, dx = step(norm, x, dy)
        ours = x.clone().requires_grad_()
        scaled = F.rms_norm(ours.unflatten(-1, (groups, -1)), (6 // groups,), eps=1e-5).flatten(-2)
        expected = plain(scaled)
        expected.backward(dy)
        assert ours.grad is not None
        torch.testing.assert_close(y, expected.detach())
        torch.testing.assert_close(dx, ours.grad)


def test_evaluation_is_torchs_batch_norm_with_a_mean_of_zero() -> None:
    norm = make(5, warmup=1, eps=1e-5)
    for number in range(4):
        step(norm, 3 * draw(2, 4, 5, seed=number), draw(2, 4, 5, seed=10 + number))
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    norm.eval()
    x = draw(7, 5, seed=50)
    expected = F.batch_norm(x, torch.zeros(5).double(), norm.second_moment, norm.weight, norm.bias, False, 0.0, 1e-5)
    torch.testing.assert_close(norm(x), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())


@pytest.mark.parametrize(("training", "steps", "alone"), [(False, 0, True), (True, 5, True), (True, 0, False)])
def test_other_tokens_are_seen_in_the_warm_up_alone(training: bool, steps: int, alone: bool) -> None:
    norm = make(4, groups=2, warmup=3, eps=1e-5).train(training)
    norm.steps.fill_(steps)
    fresh = make(4, groups=2, warmup=3, eps=1e-5).train(training)
    fresh.steps.fill_(steps)
    x = draw(1, 6, 4)
    other = torch.cat([x[:, :3], 5 * draw(1, 3, 4, seed=9)], dim=1)
    first, second = norm(x)[:, :3], fresh(other)[:, :3]
    assert torch.equal(first, second) is alone


def test_statistics_are_over_all_dimensions_but_the_last() -> None:
    flat, shaped = make(4), make(4)
    x, dy = draw(24, 4), draw(24, 4, seed=1)
    y, dx = step(flat, x, dy)
    shaped_y, shaped_dx = step(shaped, x.view(2, 3, 4, 4), dy.view(2, 3, 4, 4))
    torch.testing.assert_close(shaped_y.view(24, 4), y)
    torch.testing.assert_close(shaped_dx.view(24, 4), dx)
    torch.testing.assert_close(flat.state_dict(), shaped.state_dict())


def test_half_precision_inputs_have_statistics_in_single_precision() -> None:
    norm, single = PowerNorm(4, warmup=0), PowerNorm(4, warmup=0)
    for number in range(3):
        x = (100 * draw(8, 4, seed=number)).bfloat16().requires_grad_()
        y = norm(x)
        assert y.dtype == torch.bfloat16
        y.sum().backward()
        single(x.detach().float().requires_grad_()).sum().backward()
    assert norm.second_moment.dtype == torch.float32
    torch.testing.assert_close(norm.second_moment, single.second_moment)
    torch.testing.assert_close(norm.gradient_mean, single.gradient_mean)


def test_may_be_used_twice_before_a_backward() -> None:
    """As where one norm serves several streams; ν then moves twice."""
    norm = make(3)
    x = draw(4, 3).requires_grad_()
    (norm(x) + norm(2 * x)).sum().backward()
    assert norm.steps.item() == 2
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_saved_and_loaded_it_goes_on_alike() -> None:
    one, other = make(3, warmup=2), make(3, warmup=2)
    for number in range(4):
        step(one, draw(5, 3, seed=number), draw(5, 3, seed=20 + number))
    other.load_state_dict(one.state_dict())
    x, dy = draw(5, 3, seed=40), draw(5, 3, seed=41)
    for a, b in zip(step(one, x, dy), step(other, x, dy), strict=True):
        assert torch.equal(a, b)
    assert {"second_moment", "gradient_mean", "steps"} < one.state_dict().keys()


def test_groups_that_do_not_divide_are_named() -> None:
    with pytest.raises(UserError, match="groups=4 does not divide 6"):
        norms.build("powernorm", {"groups": 4}, hidden_size=6)
