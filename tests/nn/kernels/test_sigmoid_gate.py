from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Draw = Callable[..., Tensor]
FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture
def sigmoid_gate(twins: Callable[[str], Any]) -> Any:
    return twins("assay.nn.attention.gated_attention:sigmoid_gate")


@pytest.mark.parametrize(("x_type", "z_type"), [(FLOAT, FLOAT), (BRAIN, BRAIN), (BRAIN, FLOAT), (HALF, HALF)])
@pytest.mark.parametrize("headwise", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 1), (2, 3, 4, 33), (2, 3000), (0, 9)])
def test_is_the_plain_function(
    sigmoid_gate: Any,
    draw: Draw,
    shape: tuple[int, ...],
    headwise: bool,
    x_type: torch.dtype,
    z_type: torch.dtype,
) -> None:
    gates = 1 if headwise else shape[-1]
    sigmoid_gate.check([draw(*shape, dtype=x_type), draw(*shape[:-1], gates, seed=1, dtype=z_type)])


@pytest.mark.parametrize("headwise", [False, True])
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
def test_rounds_where_the_plain_function_does(
    sigmoid_gate: Any, draw: Draw, headwise: bool, dtype: torch.dtype
) -> None:
    x, z = draw(9, 64, dtype=dtype), draw(9, 1 if headwise else 64, seed=1, dtype=dtype)
    assert torch.equal(sigmoid_gate.kernel([x, z]), sigmoid_gate.function(x, z))


@pytest.mark.parametrize("gates", [1, 24])
def test_gates_that_heads_share(sigmoid_gate: Any, draw: Draw, gates: int) -> None:
    sigmoid_gate.check([draw(2, 5, 4, 24), draw(2, 5, 1, gates, seed=1)])


@pytest.mark.parametrize("headwise", [False, True])
def test_heads_as_attention_leaves_them(sigmoid_gate: Any, draw: Draw, headwise: bool) -> None:
    """[batch, heads, time, dim] in memory, seen as [batch, time, heads, dim]; gates cut out of a wider projection."""
    x = draw(2, 4, 5, 24).detach().transpose(1, 2).requires_grad_()
    z = draw(2, 5, 4, 60, seed=1).detach()[..., 7 : 8 if headwise else 31].requires_grad_()
    sigmoid_gate.check([x, z], towards=draw(2, 5, 4, 48, seed=2).detach()[..., ::2])


@pytest.mark.parametrize("alone", range(2))
def test_one_gradient_alone(sigmoid_gate: Any, draw: Draw, alone: int) -> None:
    tensors = [draw(5, 12), draw(5, 1, seed=1)]
    tensors[1 - alone].requires_grad_(False)
    sigmoid_gate.check(tensors)


@pytest.mark.parametrize("gates", [1, 12])
def test_the_gradient_has_a_gradient(sigmoid_gate: Any, draw: Draw, gates: int) -> None:
    sigmoid_gate.check([draw(5, 12), draw(5, gates, seed=1)], order=2)


@pytest.mark.parametrize("gates", [1, 12])
def test_zero_halves_and_infinity_opens_or_shuts(sigmoid_gate: Any, draw: Draw, gates: int) -> None:
    x = draw(5, 12)
    for z, expected in ((0.0, x / 2), (torch.inf, x), (-torch.inf, torch.zeros_like(x))):
        assert torch.equal(sigmoid_gate.kernel([x, torch.full((5, gates), z)]), expected)


@pytest.mark.parametrize("gates", [1, 17])
def test_the_same_bits_again(sigmoid_gate: Any, draw: Draw, gates: int) -> None:
    tensors, towards = [draw(300, 17), draw(300, gates, seed=1)], draw(300, 17, seed=2).detach()
    first, second = (sigmoid_gate.kernel(tensors, towards=towards) for _ in range(2))
    assert all(map(torch.equal, first, second))
