from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Draw = Callable[..., Tensor]
EPS = 0.1
FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture
def rms_norm(twins: Callable[[str], Any]) -> Any:
    return twins("assay.nn.norm.rms_norm:rms_norm")


@pytest.mark.parametrize(("x_type", "gain_type"), [(FLOAT, FLOAT), (BRAIN, BRAIN), (BRAIN, FLOAT), (HALF, HALF)])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 1), (3, 7, 33), (2, 3000), (0, 9)])
def test_is_the_plain_function(
    rms_norm: Any, draw: Draw, shape: tuple[int, ...], x_type: torch.dtype, gain_type: torch.dtype
) -> None:
    rms_norm.check([draw(*shape, dtype=x_type), draw(shape[-1], seed=1, dtype=gain_type)], EPS)


@pytest.mark.parametrize("x_type", [BRAIN, HALF])
def test_rounds_where_the_plain_function_does(rms_norm: Any, draw: Draw, x_type: torch.dtype) -> None:
    x, gain = draw(9, 64, dtype=x_type), draw(64, seed=1, dtype=x_type)
    assert torch.equal(rms_norm.kernel([x, gain], EPS), rms_norm.function(x, gain, EPS))


def test_sums_the_gain_over_programs_that_do_several_tiles_each(rms_norm: Any, draw: Draw) -> None:
    """32 rows to a tile of 64 features: eight tiles, the last with a single row, on three programs."""
    rms_norm.check([draw(7 * 32 + 1, 64), draw(64, seed=1)], EPS)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[:, ::2, 3:],
        lambda x: x[..., ::3],
        lambda x: x.permute(2, 0, 1),
        lambda x: x[:1].expand(4, -1, -1),
    ],
    ids=["transposed", "sliced", "spread", "permuted", "expanded"],
)
def test_strides(rms_norm: Any, draw: Draw, view: Callable[[Tensor], Tensor]) -> None:
    x = view(draw(4, 6, 30).detach()).requires_grad_()
    towards = view(draw(4, 6, 30, seed=2).detach())
    rms_norm.check([x, draw(2 * x.shape[-1], seed=1).detach()[::2].requires_grad_()], EPS, towards=towards)


@pytest.mark.parametrize("learning", [(True, False), (False, True)])
def test_one_gradient_alone(rms_norm: Any, draw: Draw, learning: tuple[bool, bool]) -> None:
    tensors = [draw(5, 12), draw(12, seed=1)]
    for tensor, wanted in zip(tensors, learning, strict=True):
        tensor.requires_grad_(wanted)
    rms_norm.check(tensors, EPS)


def test_the_gradient_has_a_gradient(rms_norm: Any, draw: Draw) -> None:
    rms_norm.check([draw(5, 12), draw(12, seed=1)], EPS, order=2)


def test_a_power_of_two_times_x_changes_no_bit(rms_norm: Any, draw: Draw) -> None:
    x, gain = draw(6, 50), draw(50, seed=1)
    towards = draw(6, 50, seed=2).detach()
    y, dx, dgain = rms_norm.kernel([x, gain], 0.0, towards=towards)
    scaled, dscaled, dgain_scaled = rms_norm.kernel([(8 * x).detach().requires_grad_(), gain], 0.0, towards=towards)
    assert torch.equal(scaled, y)
    assert torch.equal(8 * dscaled, dx)
    assert torch.equal(dgain_scaled, dgain)


def test_half_precision_does_not_overflow(rms_norm: Any) -> None:
    x, gain = torch.full((3, 40), 300.0, dtype=HALF), torch.ones(40, dtype=HALF)
    assert torch.equal(rms_norm.kernel([x, gain], 0.0), torch.ones(3, 40, dtype=HALF))


def test_the_same_bits_again(rms_norm: Any, draw: Draw) -> None:
    tensors, towards = [draw(300, 17), draw(17, seed=1)], draw(300, 17, seed=2).detach()
    first, second = (rms_norm.kernel(tensors, EPS, towards=towards) for _ in range(2))
    assert all(map(torch.equal, first, second))
