"""Best-response layers against dense weights for each example; what each kind of step moves; and where h ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import UserError
from assay.optim.self_tuning import (
    Hyperparameter,
    Hyperparameters,
    ResponsiveConv2d,
    ResponsiveLinear,
    SelfTuner,
    dropout,
    squared_norm,
)

RATE = Hyperparameter("dropout", 0.05, 0.0, 0.9)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = ResponsiveLinear(5, 4, 3) if kind == "linear" else ResponsiveConv2d(2, 4, 3, 3, stride=2, padding=1)
    made = made.double()
    nn.init.normal_(made.gates.weight)
    nn.init.constant_(made.scale, 0.7)
    return made


def inputs(kind: str) -> Tensor:
    return draw(6, 5) if kind == "linear" else draw(6, 2, 7, 7)


def plain(kind: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias) if kind == "linear" else F.conv2d(x, weight, bias, 2, 1)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
class TestLayers:
    def test_each_example_has_dense_weights_of_its_own(self, kind: str) -> None:
        made, x, h = layer(kind), inputs(kind), draw(6, 3, seed=1)
        for row, found in enumerate(made(x, h)):
            gate, shift = (made.gates.weight @ h[row]).chunk(2)
            shape = (-1,) + (1,) * (made.weight.ndim - 1)
            weight = 0.7 * made.weight + gate.view(shape) * made.response_weight
            bias = 0.7 * made.bias + shift * made.response_bias
            torch.testing.assert_close(found, plain(kind, x[row : row + 1], weight, bias)[0])
            assert made.squared_norm(h)[row].item() == pytest.approx(weight.square().sum().item())

    def test_is_affine_in_the_hyperparameters(self, kind: str) -> None:
        made, x, h = layer(kind), inputs(kind), draw(6, 3, seed=1)
        zero = torch.zeros_like(h)
        expected = made(x, zero)
        for place in range(3):
            unit = torch.zeros_like(h)
            unit[:, place] = 1
            size = h[:, place].view(-1, *[1] * (expected.ndim - 1))
            expected = expected + size * (made(x, unit) - made(x, zero))
        torch.testing.assert_close(made(x, h), expected)

    def test_is_a_plain_layer_without_a_response(self, kind: str) -> None:
        made, x = layer(kind), inputs(kind)
        expected = plain(kind, x, 0.7 * made.weight, 0.7 * made.bias)
        torch.testing.assert_close(made(x, torch.zeros(6, 3, dtype=torch.float64)), expected)
        nn.init.zeros_(made.gates.weight)
        torch.testing.assert_close(made(x, draw(6, 3)), expected)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    made = ResponsiveLinear(100, 300, 2)
    for parameter in (made.weight, made.bias, made.response_weight, made.response_bias):
        assert 0.09 < parameter.abs().max().item() <= 0.1
    assert made.gates.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert made.scale.item() == 1


class TestHyperparameters:
    def test_worked_numbers(self) -> None:
        known = Hyperparameters([RATE])
        assert known.values.item() == pytest.approx(-2.833213, abs=1e-5)
        assert known.scales.item() == pytest.approx(-0.432752, abs=1e-5)
        assert known.entropy().item() == pytest.approx(0.725791, abs=1e-5)

    @pytest.mark.parametrize("bounds", [(0.0, 0.9), (-1.0, math.inf), (-math.inf, 2.0), (-math.inf, math.inf)])
    def test_the_maps_stay_within_bounds_and_have_inverses(self, bounds: tuple[float, float]) -> None:
        each = Hyperparameter("x", 0.3, *bounds)
        assert each.constrained(torch.tensor(each.unconstrained())).item() == pytest.approx(0.3, abs=1e-6)
        found = each.constrained(torch.linspace(-8, 8, 9))
        assert bounds[0] <= found.min()
        assert found.max() <= bounds[1]
        steps = found.diff()
        assert (steps < 0).all() if bounds == (-math.inf, 2.0) else (steps > 0).all()

    def test_perturbations_have_their_scale_and_may_be_shared(self) -> None:
        one = Hyperparameter("a", 1.0, scale=0.25)
        other = Hyperparameter("b", -1.0, scale=2.0, per_example=False)
        found = Hyperparameters([one, other]).perturbed(20_000, torch.Generator().manual_seed(0))
        assert found[:, 0].mean().item() == pytest.approx(1, abs=0.01)
        assert found[:, 0].std().item() == pytest.approx(0.25, rel=0.02)
        assert (found[:, 1] == found[0, 1]).all()

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ({"initial": 0.9}, "dropout: initial=0.9 is not between 0.0 and 0.9"),
            ({"initial": math.nan}, "initial=nan is not between"),
            ({"initial": 0.1, "scale": 0.0}, "scale=0.0; it must be positive"),
        ],
    )
    def test_bad_ones(self, options: dict[str, float], line: str) -> None:
        with pytest.raises(UserError, match=line):
            Hyperparameter("dropout", minimum=0.0, maximum=0.9, **options)

    def test_names_are_different(self) -> None:
        with pytest.raises(UserError, match="each a name of its own"):
            Hyperparameters([RATE, RATE])


def test_dropout_has_each_examples_rate_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    rate = torch.tensor([0.0, 0.3, 0.8])
    found = dropout(torch.ones(3, 40_000), rate)
    assert (found == 0).float().mean(1).tolist() == pytest.approx(rate.tolist(), abs=0.01)
    assert found.mean(1).tolist() == pytest.approx([1, 1, 1], abs=0.03)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = ResponsiveLinear(3, 8, 1), ResponsiveLinear(8, 2, 1)

    def forward(self, x: Tensor, h: Tensor, rates: Any) -> Tensor:
        hidden = F.relu(self.one(x, h))
        return self.two(dropout(hidden, rates["dropout"]) if "dropout" in rates else hidden, h)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor], h: Tensor, rates: Any) -> Tensor:
    return F.cross_entropy(model(batch[0], h, rates), batch[1])


def tuner(**options: Any) -> SelfTuner:
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    return SelfTuner(model, Hyperparameters([RATE]), loss, optimizer, generator=generator, **options)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    x = draw(16, 3, seed=seed).float()
    return x, (x.sum(-1) > 0).long()


def copies(module: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in module.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("tune_scales", [True, False])
def test_each_kind_of_step_moves_its_own(tune_scales: bool) -> None:
    tuned = tuner(tune_scales=tune_scales)
    network, known = copies(tuned.model), copies(tuned.hyperparameters)
    tuned.train_step(batch(0), 16)
    assert all(same(known, copies(tuned.hyperparameters)))
    moved = copies(tuned.model)
    assert not any(same(network, moved))
    gradients = [p.grad.clone() for p in tuned.model.parameters() if p.grad is not None]
    tuned.validation_step(batch(1), 16)
    assert all(same(moved, copies(tuned.model)))
    assert all(same(gradients, [p.grad for p in tuned.model.parameters() if p.grad is not None]))
    assert same(known, copies(tuned.hyperparameters)) == [False, not tune_scales]


def test_rates_carry_no_gradient_to_the_hyperparameters() -> None:
    """That of a training loss with respect to h is the part through the responsive layers alone."""
    tuned = tuner()
    h = tuned.hyperparameters.perturbed(16)
    rates = tuned.hyperparameters.constrained(h)
    slopes = []
    for given in (rates, {"dropout": rates["dropout"].clone()}):
        torch.manual_seed(1)
        slopes.append(torch.autograd.grad(loss(tuned.model, batch(0), h, given), h, retain_graph=True)[0])
    assert torch.equal(*slopes)
    assert slopes[0].abs().max() > 0
    for gates in (tuned.model.one.gates, tuned.model.two.gates):
        nn.init.zeros_(gates.weight)
    (slope,) = torch.autograd.grad(loss(tuned.model, batch(0), h, rates), h)
    assert torch.equal(slope, torch.zeros_like(slope))


def test_a_saved_tuner_goes_on_bit_for_bit() -> None:
    whole, first, second = tuner(), tuner(), tuner()

    def go(each: SelfTuner, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            each.train_step(batch(step), 16)
            each.validation_step(batch(100 + step), 16)

    go(whole, range(6))
    go(first, range(3))
    second.load_state_dict(first.state_dict())
    second.model.load_state_dict(first.model.state_dict())
    go(second, range(3, 6))
    assert all(same(copies(whole.model), copies(second.model)))
    assert all(same(copies(whole.hyperparameters), copies(second.hyperparameters)))


class Weight(nn.Module):
    """One weight for all examples, ``w(h) = w₀ + k h w₁``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = ResponsiveLinear(1, 1, 1)


def ridge(model: Any, batch: tuple[Tensor, Tensor], h: Tensor, rates: Any) -> Tensor:
    x, y = batch
    value = (model.linear(x, h)[:, 0] - y).square()
    if "decay" in rates:
        value = value + rates["decay"] * squared_norm(model, h)
    return value.mean()


def test_the_decay_of_a_ridge_regression_goes_to_its_optimum() -> None:
    """x² = 1, so the training optimum is w = a / (1 + λ) for a slope a of 2, and validation has slope 1: λ = 1."""
    torch.manual_seed(0)
    model = Weight()
    known = Hyperparameters([Hyperparameter("decay", 0.2, 0.0, scale=0.3)])
    tuned = SelfTuner(
        model, known, ridge, torch.optim.SGD(model.parameters(), lr=0.05), lr=0.02, tune_scales=False,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    x = torch.tensor([[1.0], [-1.0]]).repeat(32, 1)
    for step in range(900):
        tuned.train_step((x, 2 * x[:, 0]), 64)
        if step >= 100:
            tuned.validation_step((x, x[:, 0]), 64)
    assert known.current()["decay"] == pytest.approx(1.0, rel=0.15)


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="lr=0"):
        tuner(lr=0.0)
    known = Hyperparameters([RATE])
    with pytest.raises(UserError, match="must not hold the hyper-parameters"):
        SelfTuner(Network(), known, loss, torch.optim.SGD(known.parameters(), lr=0.1))
