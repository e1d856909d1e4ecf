"""Exponentiated gradient: the formula, its limits, and that no sign ever changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from assay.errors import Interrupted, UserError
from assay.optim import optimizers, parameter_groups
from assay.optim.exponentiated_gradient import ExponentiatedGradient
from assay.slots import Component
from assay.training.loop import train


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(weight: nn.Parameter, lr: float = 0.1, **options: Any) -> ExponentiatedGradient:
    groups = [{"params": [weight], "role": "matrix", "decay": True}]
    return ExponentiatedGradient(groups, lr, **{"scale": 1.0, "weight_decay": 0.0, **options})


def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter, numbers: range) -> None:
    for number in numbers:
        weight.grad = draw(*weight.shape, seed=number + 1).to(weight.dtype)
        optimizer.step()


def test_one_step_of_the_formula() -> None:
    """w exp(−0.05 (2 sign(w) g + 0.5)): (2, −1, 0) on the gradient (3, 3, 3) becomes (2 e^−0.325, −e^0.275, 0)."""
    weight = nn.Parameter(torch.tensor([[2.0, -1.0, 0.0]], dtype=torch.float64))
    optimizer = build(weight, 0.05, scale=2.0, update="gradient", weight_decay=0.5)
    weight.grad = torch.full_like(weight, 3.0)
    optimizer.step()
    expected = torch.tensor([[2 * math.exp(-0.325), -math.exp(0.275), 0.0]], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("update", ["adam", "gradient"])
def test_is_torchs_optimizer_on_the_logarithm(update: str) -> None:
    """log |w| moves by sign(w) times what torch's optimizer moves a plain parameter on the same gradients."""
    weight, plain = nn.Parameter(draw(6, 5)), nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))
    signs, start = weight.detach().sign(), weight.detach().abs().log()
    optimizer = build(weight, update=update, betas=(0.8, 0.9), momentum=0.7)
    other = (
        torch.optim.AdamW([plain], 0.1, betas=(0.8, 0.9), weight_decay=0.0)
        if update == "adam"
        else torch.optim.SGD([plain], 0.1, momentum=0.7)
    )
    for number in range(10):
        steps(optimizer, weight, range(number, number + 1))
        steps(other, plain, range(number, number + 1))
        expected = signs * (start + signs * plain.detach()).exp()
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-14)


def test_small_steps_are_gradient_descent_with_rates_by_size() -> None:
    weight, gradient = nn.Parameter(draw(4, 4)), draw(4, 4, seed=1)
    before = weight.detach().clone()
    optimizer = build(weight, 1e-6, update="gradient", momentum=0.0)
    weight.grad = gradient
    optimizer.step()
    torch.testing.assert_close((weight.detach() - before) / 1e-6, -before.abs() * gradient, rtol=1e-4, atol=1e-6)


def test_no_step_changes_a_sign() -> None:
    weight = nn.Parameter(draw(30, 30))
    signs = weight.detach().sign()
    steps(build(weight, 5.0, weight_decay=0.3), weight, range(20))
    assert torch.equal(weight.detach().sign(), signs)
    assert weight.detach().isfinite().all()


def test_a_mean_is_learnt_by_its_size_where_signs_are_right() -> None:
    """The minimum of ‖w − t‖² is found where signs agree; where they do not, the weight goes to 0 and stays there."""
    target = draw(8, 8)
    weight = nn.Parameter(target.abs().add(0.1) * target.sign())
    with torch.no_grad():
        weight[0] *= -1
    optimizer = build(weight, 0.05, update="gradient", momentum=0.5)
    for _ in range(2000):
        optimizer.zero_grad()
        (0.5 * (weight - target).square().sum()).backward()
        optimizer.step()
    torch.testing.assert_close(weight.detach()[1:], target[1:], rtol=1e-2, atol=0.02)
    assert weight.detach()[0].abs().max() < target[0].abs().max() / 2
    assert torch.equal(weight.detach()[0].sign(), -target[0].sign())


def test_bfloat16_matrices_keep_float32_moments_through_a_state_dict() -> None:
    one, two = (nn.Parameter(draw(5, 4).bfloat16()) for _ in range(2))
    whole, half = build(one), build(two)
    steps(whole, one, range(6))
    steps(half, two, range(3))
    again = build(two, 0.9)
    again.load_state_dict(half.state_dict())
    steps(again, two, range(3, 6))
    assert torch.equal(one, two)
    assert {value.dtype for value in again.state[two].values()} == {torch.float32}


@pytest.mark.parametrize("update", ["adam", "gradient"])
def test_a_run_keeps_signs_and_goes_on_bit_for_bit(tiny: dict[str, Any], tmp_path: Path, update: str) -> None:
    values = {
        "optimizer": {"name": "exponentiated-gradient", "update": update, "lr": 0.02},
        "training.keep": [1 / 12],
    }
    train(tiny, out=tmp_path / "whole", values=values)
    with pytest.raises(Interrupted):
        train(tiny, out=tmp_path / "stopped", values=values, stop=After(6))
    train(tiny, out=tmp_path / "stopped", values=values, resume=True)
    whole, stopped, first = (
        load_file(tmp_path / name / "model.safetensors")
        for name in ("whole/checkpoint", "stopped/checkpoint", "whole/checkpoints/000001")
    )
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    matrices = [name for name, value in whole.items() if ".layers." in name and value.ndim == 2]
    assert matrices
    for name in matrices:
        assert torch.equal(whole[name].sign(), first[name].sign())
        assert not torch.equal(whole[name], first[name])


class After:
    """Set from the n-th time on that it is asked."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_the_rest_takes_adamws_steps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.LayerNorm(5))
    optimizer = optimizers.build("exponentiated-gradient", params=parameter_groups(model), lr=0.01)
    with torch.no_grad():
        model[1].bias.zero_()
    model(torch.arange(7)).square().sum().backward()
    optimizer.step()
    assert model[1].bias.detach().abs().min() > 1e-3
    assert set(optimizer.state[model[1].weight]) == {"step", "exp_avg", "exp_avg_sq"}


def test_mistakes_are_named() -> None:
    weight = nn.Parameter(torch.zeros(3, 4))
    weight.grad = torch.ones(3, 4)
    with pytest.raises(UserError, match=r"matrix of shape \(3, 4\) that starts at 0"):
        build(weight).step()
    for options, message in (
        ({"update": "sgd"}, "option update='sgd'"),
        ({"momentum": 1.0}, "option momentum=1.0"),
        ({"weight_decay": -1}, "option weight_decay=-1"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Component.parse(optimizers, {"name": "exponentiated-gradient", **options})
        assert "\n" not in str(error.value)
