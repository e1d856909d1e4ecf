from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Draw = Callable[..., Tensor]
EPS = 0.1
FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture
def seednorm(twins: Callable[[str], Any]) -> Any:
    return twins("assay.nn.norm.seednorm:seednorm")


def gains(draw: Draw, hidden: int, dtype: torch.dtype = FLOAT) -> list[Tensor]:
    """γ, α and β, this small enough to leave tanh in its slope."""
    weight, alpha, beta = (draw(hidden, seed=seed, dtype=dtype) for seed in (1, 2, 3))
    return [weight, alpha, (beta / math.sqrt(hidden)).detach().requires_grad_()]


@pytest.mark.parametrize(("x_type", "gain_type"), [(FLOAT, FLOAT), (BRAIN, BRAIN), (BRAIN, FLOAT), (HALF, HALF)])
@pytest.mark.parametrize(
    ("shape", "num_heads"),
    [((5,), 1), ((2, 3, 1), 1), ((3, 7, 33), 3), ((9, 30), 30), ((2, 3000), 1), ((3, 1200), 5), ((0, 9), 3)],
)
def test_is_the_plain_function(
    seednorm: Any,
    draw: Draw,
    shape: tuple[int, ...],
    num_heads: int,
    x_type: torch.dtype,
    gain_type: torch.dtype,
) -> None:
    seednorm.check([draw(*shape, dtype=x_type), *gains(draw, shape[-1], gain_type)], num_heads, EPS)


@pytest.mark.parametrize("num_heads", [1, 4])
def test_sums_the_gains_over_programs_that_do_several_tiles_each(seednorm: Any, draw: Draw, num_heads: int) -> None:
    seednorm.check([draw(7 * 32 + 1, 64), *gains(draw, 64)], num_heads, EPS)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[..., 3:15],
        lambda x: x[..., ::3],
        lambda x: x[:1].expand(4, -1, -1),
    ],
    ids=["transposed", "sliced", "spread", "expanded"],
)
def test_strides(seednorm: Any, draw: Draw, view: Callable[[Tensor], Tensor]) -> None:
    x = view(draw(4, 6, 30).detach()).requires_grad_()
    towards = view(draw(4, 6, 30, seed=5).detach())
    seednorm.check([x, *gains(draw, x.shape[-1])], 2, EPS, towards=towards)


@pytest.mark.parametrize("alone", range(4))
def test_one_gradient_alone(seednorm: Any, draw: Draw, alone: int) -> None:
    tensors = [draw(5, 12), *gains(draw, 12)]
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index == alone)
    seednorm.check(tensors, 3, EPS)


def test_the_gradient_has_a_gradient(seednorm: Any, draw: Draw) -> None:
    seednorm.check([draw(5, 12), *gains(draw, 12)], 3, EPS, order=2)


@pytest.mark.parametrize(
    ("num_heads", "expected"),
    [(1, [0.5848, 1.1697, 0.9848, 1.9697]), (2, [0.4399, 0.8797, 0.9520, 1.9040])],
)
def test_worked_numbers(seednorm: Any, num_heads: int, expected: list[float]) -> None:
    x, alpha, beta = torch.tensor([[1.0, 2, 2, 4], [1, 1, 0.5, 0.5], [0.1, 0, 0, 0.1]])
    y = seednorm.kernel([x, torch.ones(4), alpha, beta], num_heads, 0.0)
    torch.testing.assert_close(y, torch.tensor(expected), atol=5.1e-5, rtol=0)


@pytest.mark.parametrize("zero", [1, 2], ids=["alpha", "beta"])
def test_alpha_or_beta_zero_is_the_kernel_of_rms_norm_bit_for_bit(
    seednorm: Any, twins: Callable[[str], Any], draw: Draw, zero: int
) -> None:
    x, parameters = draw(7, 48), gains(draw, 48)
    parameters[zero] = torch.zeros(48)
    expected = twins("assay.nn.norm.rms_norm:rms_norm").kernel([x, parameters[0]], EPS)
    assert torch.equal(seednorm.kernel([x, *parameters], 1, EPS), expected)


def test_the_gate_is_tanh_to_the_last_digits_at_every_size(seednorm: Any) -> None:
    """One feature with γ = 0, α = β = 1 and ε = 0: y = tanh |x|."""
    x = torch.cat((torch.logspace(-15, 1.5, 400), torch.linspace(0.2, 0.3, 101)))[:, None]
    parameters = [torch.zeros(1), torch.ones(1), torch.ones(1)]
    for sign in (1, -1):
        y = seednorm.kernel([sign * x, *parameters], 1, 0.0)
        torch.testing.assert_close(y.double(), torch.tanh(x.double()), rtol=3e-7, atol=0)


def test_the_same_bits_again(seednorm: Any, draw: Draw) -> None:
    tensors, towards = [draw(300, 18), *gains(draw, 18)], draw(300, 18, seed=5).detach()
    first, second = (seednorm.kernel(tensors, 3, EPS, towards=towards) for _ in range(2))
    assert all(map(torch.equal, first, second))
