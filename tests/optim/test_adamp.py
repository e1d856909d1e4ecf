"""AdamP: Adam where a weight is not scale-invariant, and steps at right angles to it where it is."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import Interrupted, UserError
from assay.optim import optimizers, parameter_groups
from assay.optim.adamp import AdamP, invariant_views
from assay.slots import Component
from assay.training.loop import train

BETAS = (0.9, 0.999)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def adamp(weights: list[nn.Parameter], lr: float = 0.1, **options: Any) -> AdamP:
    options = {"betas": BETAS, "weight_decay": 0.0, **options}
    return AdamP([{"params": weights, "role": "matrix", "decay": True}], lr, **options)


def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradient: Tensor) -> None:
    weight.grad = gradient.clone()
    optimizer.step()


def cosine_loss(weight: Tensor, towards: Tensor) -> Tensor:
    return -F.cosine_similarity(weight.flatten(1), towards.flatten(1), dim=1).sum()


def test_the_worked_first_step() -> None:
    """Adam's step from (3, 4) on the gradient (−4, 3) is (0.1, −0.1); the part along (3, 4) is taken out of it."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    step(adamp([weight]), weight, torch.tensor([[-4.0, 3.0]], dtype=torch.float64))
    expected = torch.tensor([[3.112, 3.916]], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-8)
    assert weight.norm().item() == pytest.approx(math.sqrt(25 + 0.14**2), abs=1e-8)


class Reference:
    """The formula for one weight whose rows are all scale-invariant, in plain steps."""

    def __init__(self, lr: float, weight_decay: float, wd_ratio: float) -> None:
        self.lr, self.decay = lr, lr * weight_decay * wd_ratio
        self.m = self.v = 0.0
        self.t = 0

    def __call__(self, weight: Tensor, gradient: Tensor) -> Tensor:
        self.t += 1
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * gradient
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * gradient**2
        u = (self.m / (1 - BETAS[0] ** self.t)) / ((self.v / (1 - BETAS[1] ** self.t)).sqrt() + 1e-8)
        n = weight / weight.norm(dim=1, keepdim=True)
        return (1 - self.decay) * weight - self.lr * (u - n * (n * u).sum(1, keepdim=True))


def test_the_formula_over_steps_with_decay() -> None:
    weight, towards = nn.Parameter(draw(5, 12)), draw(5, 12, seed=1)
    expected = weight.detach().clone()
    optimizer, reference = adamp([weight], 0.02, weight_decay=0.5), Reference(0.02, 0.5, 0.1)
    for _ in range(8):
        (gradient,) = torch.autograd.grad(cosine_loss(weight, towards), weight)
        expected = reference(expected, gradient)
        step(optimizer, weight, gradient)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 10), (4, 3, 2, 2), (1, 64)])
def test_the_squared_norm_grows_by_the_steps(shape: tuple[int, ...]) -> None:
    weight, towards = nn.Parameter(draw(*shape)), draw(*shape, seed=1)
    optimizer = adamp([weight])
    for _ in range(6):
        before = weight.detach().clone()
        (gradient,) = torch.autograd.grad(cosine_loss(weight, towards), weight)
        step(optimizer, weight, gradient)
        moved = (weight.detach() - before).flatten(1)
        grown = weight.detach().flatten(1).square().sum(1) - before.flatten(1).square().sum(1)
        torch.testing.assert_close(grown, moved.square().sum(1), rtol=1e-6, atol=1e-12)
        assert grown.min() > 0


def both(shape: tuple[int, ...], **options: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """A weight after five steps of AdamP, and one after torch's AdamW."""
    ours, theirs = nn.Parameter(draw(*shape)), nn.Parameter(draw(*shape))
    one = adamp([ours], 0.01, weight_decay=0.3, **options)
    other = torch.optim.AdamW([theirs], 0.01, betas=BETAS, weight_decay=0.3)
    for number in range(5):
        gradient = draw(*shape, seed=number + 1)
        step(one, ours, gradient)
        step(other, theirs, gradient)
    return ours, theirs


@pytest.mark.parametrize(("shape", "options"), [((9, 7), {"delta": 0.0}), ((50,), {"delta": 100.0})])
def test_is_adamw_at_delta_0_and_for_vectors(shape: tuple[int, ...], options: dict[str, float]) -> None:
    torch.testing.assert_close(*both(shape, **options), rtol=1e-12, atol=1e-14)


def test_is_not_adamw_where_everything_counts_as_invariant() -> None:
    ours, theirs = both((9, 7), delta=100.0)
    assert (ours - theirs).abs().max() > 1e-3


class TestViews:
    @pytest.mark.parametrize(("columns", "bound"), [(2, 0.0707), (64, 0.0125), (576, 0.00417), (4608, 0.00147)])
    def test_the_bound_follows_from_the_columns(self, columns: int, bound: float) -> None:
        weight = F.normalize(draw(3, columns), dim=1)
        across = draw(3, columns, seed=1)
        across = F.normalize(across - (across * weight).sum(1, keepdim=True) * weight, dim=1)
        for cosine, expected in ((0.99 * bound, "rows"), (1.01 * bound, None)):
            gradient = cosine * weight + math.sqrt(1 - cosine**2) * across
            assert invariant_views([weight], [gradient], 0.1, 1e-8) == [expected]

    def test_one_row_out_of_many_settles_it(self) -> None:
        weight, gradient = torch.zeros(40, 8), torch.zeros(40, 8)
        weight[:, 0] = gradient[:, 1] = 1.0
        assert invariant_views([weight], [gradient], 0.1, 1e-8) == ["rows"]
        for row in (0, 15, 16, 39):
            tilted = gradient.clone()
            tilted[row, 0] = 1.0
            assert invariant_views([weight], [tilted], 0.1, 1e-8) == [None]

    def test_the_whole_tensor_where_rows_cancel(self) -> None:
        weight = draw(4, 6)
        gradient = weight * torch.tensor([[1.0], [-1.0], [0.0], [0.0]], dtype=torch.float64)
        gradient[1] *= weight[0].square().sum() / weight[1].square().sum()
        assert invariant_views([weight], [gradient], 0.1, 1e-8) == ["whole"]
        assert invariant_views([weight], [weight], 0.1, 1e-8) == [None]

    def test_scale_does_not_matter(self) -> None:
        weights = [draw(1, 30, seed=seed) for seed in range(200)]
        gradients = [draw(1, 30, seed=1000 + seed) for seed in range(200)]
        views = invariant_views(weights, gradients, 0.1, 1e-8)
        scaled = invariant_views([7.3 * w for w in weights], [g / 7.3 for g in gradients], 0.1, 1e-8)
        assert views == scaled
        assert 4 <= len(views) - views.count(None) <= 40

    def test_each_parameter_is_judged_alone(self) -> None:
        weight, gradient = torch.eye(3), torch.eye(3).roll(1, 0)
        vector = torch.ones(3)
        found = invariant_views([weight, vector, weight, weight], [weight, vector, gradient, 0 * weight], 0.1, 1e-8)
        assert found == [None, None, "rows", "rows"]


def test_the_projection_for_the_whole_tensor() -> None:
    """Gradients along the rows that cancel: the first step is −lr sign(g), less its part along the tensor."""
    weight = nn.Parameter(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    before = weight.detach().clone()
    step(adamp([weight]), weight, torch.tensor([[2.0, 1.0], [-1.0, -2.0]], dtype=torch.float64))
    update = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    update -= before * (before * update).sum() / before.square().sum()
    torch.testing.assert_close(weight.detach(), before - 0.1 * update, rtol=0, atol=1e-8)


def test_bfloat16_parameters_keep_float32_moments_through_a_state_dict() -> None:
    def weights() -> list[nn.Parameter]:
        return [nn.Parameter(draw(8, 6).bfloat16()), nn.Parameter(draw(5).bfloat16())]

    whole, halves = weights(), weights()
    one, two = adamp(whole, 0.01), adamp(halves, 0.01)
    for number in range(6):
        if number == 3:
            state, two = two.state_dict(), adamp(halves, 0.5)
            two.load_state_dict(copy.deepcopy(state))
        for optimizer, parameters in ((one, whole), (two, halves)):
            for index, parameter in enumerate(parameters):
                parameter.grad = draw(*parameter.shape, seed=10 * number + index).bfloat16()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    assert {value.dtype for p in halves for value in two.state[p].values()} == {torch.float32}


def test_a_run_stopped_and_resumed_is_the_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    values = {"optimizer.name": "adamp", "optimizer.delta": 3.0}
    train(tiny, out=tmp_path / "whole", values=values)
    with pytest.raises(Interrupted):
        train(tiny, out=tmp_path / "stopped", values=values, stop=After(6))
    train(tiny, out=tmp_path / "stopped", values=values, resume=True)
    train(tiny, out=tmp_path / "plain", values={**values, "optimizer.delta": 0.0})
    train(tiny, out=tmp_path / "micro", values={**values, "training.micro_batch_size": 2})
    whole, stopped, plain, micro = (
        load_file(tmp_path / name / "checkpoint" / "model.safetensors")
        for name in ("whole", "stopped", "plain", "micro")
    )
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    assert any(not torch.equal(value, plain[name]) for name, value in whole.items())
    for name, value in whole.items():
        torch.testing.assert_close(micro[name], value, rtol=1e-3, atol=2e-4)


class After:
    """Set from the n-th time on that it is asked."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_parameters_without_gradient_stay_as_they_are() -> None:
    used, unused = nn.Parameter(draw(3, 4)), nn.Parameter(draw(3, 4))
    optimizer = adamp([used, unused], weight_decay=0.1)
    before = unused.detach().clone()
    step(optimizer, used, draw(3, 4, seed=1))
    assert torch.equal(unused, before)
    assert set(optimizer.state) == {used}


def test_decay_follows_the_groups() -> None:
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5))
    optimizer = optimizers.build("adamp", {"weight_decay": 0.3}, params=parameter_groups(model), lr=0.1)
    assert [(g["role"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("embedding", 0.3),
        ("matrix", 0.3),
        ("vector", 0.0),
    ]


def test_mistakes_are_named() -> None:
    for options, message in (
        ({"delta": -1}, "option delta=-1"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"wd_ratio": "much"}, "option wd_ratio='much'"),
        ({"ratio": 1}, "'adamp' has no option 'ratio'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Component.parse(optimizers, {"name": "adamp", **options})
        assert "\n" not in str(error.value)
