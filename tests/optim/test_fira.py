"""Fira: the limits in which it is GaLore, a worked first step, the limiter, and what it does beyond the subspace."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.errors import UserError
from assay.optim.fira import Fira
from assay.optim.galore import GaLore
from assay.training.config import RunConfig


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def advance(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradient: Tensor) -> Tensor:
    before = weight.detach().clone()
    weight.grad = gradient.clone()
    optimizer.step()
    return weight.detach() - before


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_at_full_rank_nothing_is_left_over_and_it_is_galore(shape: tuple[int, int]) -> None:
    one, other = (nn.Parameter(draw(*shape)) for _ in range(2))
    fira = Fira([one], lr=0.1, rank=9, scale=1.0)
    galore = GaLore([other], lr=0.1, rank=9, scale=1.0)
    for step in range(5):
        gradient = draw(*shape, seed=step + 1)
        advance(fira, one, gradient)
        advance(galore, other, gradient)
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-9, atol=1e-9)
        assert fira.state[one]["residual_norm"] < 1e-9


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("wide", [False, True])
def test_a_worked_first_step_at_rank_one(scale: float, wide: bool) -> None:
    """Φ undoes Adam's own scaling then: each row moves by its gradient over |R_i|, whatever the scale."""
    gradient = torch.tensor([[3.0, 1], [1, 2], [0, 1]], dtype=torch.float64)
    expected = torch.tensor([[0.9853, 0.3284], [0.5130, 1.0260], [0, 1.7837]], dtype=torch.float64)
    weight = nn.Parameter(torch.zeros_like(gradient.mT if wide else gradient))
    optimizer = Fira([weight], lr=1.0, rank=1, scale=scale, eps=0.0, weight_decay=0.0)
    moved = advance(optimizer, weight, gradient.mT if wide else gradient)
    torch.testing.assert_close(-(moved.mT if wide else moved), expected, rtol=0, atol=6e-5)


def test_a_row_outside_of_the_subspace_does_not_move() -> None:
    weight = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    optimizer = Fira([weight], lr=1.0, rank=1, weight_decay=0.0)
    moved = advance(optimizer, weight, torch.tensor([[3.0, 0], [2, 0], [0, 1]], dtype=torch.float64))
    assert moved[2].abs().max() < 1e-6
    assert moved[:2, 0].abs().min() > 0.5


@pytest.mark.parametrize("gamma", [1.01, 1.2])
def test_what_is_left_over_grows_by_gamma_at_most(gamma: float) -> None:
    weight = nn.Parameter(torch.zeros(6, 9, dtype=torch.float64))
    optimizer = Fira([weight], lr=0.1, rank=2, gamma=gamma)
    norms = []
    for step in range(12):
        advance(optimizer, weight, 10 ** (step % 3) * draw(6, 9, seed=step))
        norms.append(optimizer.state[weight]["residual_norm"].item())
    ratios = [after / before for before, after in pairwise(norms)]
    assert max(ratios) == pytest.approx(gamma, rel=1e-6)
    assert min(ratios) < 0.9


def test_without_a_limit_it_is_the_formula() -> None:
    weight = nn.Parameter(draw(5, 8))
    optimizer = Fira([weight], lr=0.1, rank=3, gamma=math.inf, scale=0.5, betas=(0.9, 0.99), eps=1e-3)
    expected = weight.detach().clone()
    first = second = torch.zeros(8, 3, dtype=torch.float64)
    for step in range(4):
        gradient = draw(5, 8, seed=step + 1)
        advance(optimizer, weight, gradient)
        if step == 0:
            basis = torch.linalg.svd(gradient).U[:, :3]
        low = gradient.mT @ basis
        first, second = 0.9 * first + 0.1 * low, 0.99 * second + 0.01 * low**2
        adam = first / (second.sqrt() + 1e-3)
        rest = (gradient.mT - 0.5 * low @ basis.mT) * (adam.norm(dim=1) / low.norm(dim=1))[:, None]
        rate = 0.1 * math.sqrt(1 - 0.99 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        expected = (expected - rate * (0.5 * adam @ basis.mT + rest).mT) * (1 - 0.1 * 0.1)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-6)


def test_a_gradient_that_comes_after_zeros_is_not_held_back() -> None:
    weights = [nn.Parameter(torch.zeros(6, 4, dtype=torch.float64)) for _ in range(2)]
    late, fresh = (Fira([weight], lr=0.1, rank=1, update_proj_gap=1) for weight in weights)
    advance(late, weights[0], torch.zeros(6, 4, dtype=torch.float64))
    for optimizer, weight in zip((late, fresh), weights, strict=True):
        advance(optimizer, weight, draw(6, 4))
    assert late.state[weights[0]]["residual_norm"] > 0.1 * fresh.state[weights[1]]["residual_norm"]


def test_only_fira_leaves_a_fixed_subspace() -> None:
    """Mean squared error to a target after 400 noisy steps: a fixed basis of two directions is enough for Fira."""

    def error(kind: type[GaLore], gap: int) -> float:
        target = draw(16, 24)
        weight = nn.Parameter(torch.zeros_like(target))
        optimizer = kind([weight], lr=0.02, rank=2, update_proj_gap=gap, scale=1.0, weight_decay=0.0)
        for step in range(400):
            advance(optimizer, weight, weight.detach() - target + 0.3 * draw(16, 24, seed=step + 1))
        return (weight.detach() - target).square().mean().item()

    assert error(GaLore, 1000) > 0.4
    assert error(Fira, 1000) < 0.05
    assert error(Fira, 50) < error(GaLore, 50)


def test_in_bfloat16_a_saved_optimizer_goes_on_bit_for_bit() -> None:
    def weights(saved_after: int | None) -> Tensor:
        weight = nn.Parameter(draw(6, 9).bfloat16())
        optimizer = Fira([weight], lr=0.1, rank=2, update_proj_gap=4)
        for step in range(6):
            if step == saved_after:
                state, optimizer = optimizer.state_dict(), Fira([weight], lr=0.5)
                optimizer.load_state_dict(state)
                assert optimizer.state[weight]["residual_norm"].dtype == torch.float32
            advance(optimizer, weight, ((1 + step) ** 2 * draw(6, 9, seed=step + 1)).bfloat16())
        return weight.detach()

    assert torch.equal(weights(3), weights(None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_norm_of_what_is_left_over_is_that_of_its_entries(dtype: torch.dtype, scale: float) -> None:
    """The formula of S, entry by entry in float64, for a wide and a tall matrix in low precision."""
    for shape in ((40, 300), (300, 40)):
        weight, gradient = nn.Parameter(torch.zeros(shape, dtype=dtype)), draw(*shape).to(dtype)
        optimizer = Fira([weight], lr=0.1, rank=8, scale=scale)
        advance(optimizer, weight, gradient)
        tall = gradient.double() if shape[0] > shape[1] else gradient.double().mT
        basis = optimizer.state[weight]["basis"].double()
        low = tall @ basis
        adam = 0.1 * low / ((0.05 * low**2).sqrt() + 1e-8)
        rest = (tall - scale * low @ basis.mT) * (adam.norm(dim=1) / low.norm(dim=1))[:, None]
        found = optimizer.state[weight]["residual_norm"].item()
        assert found == pytest.approx(rest.norm().item(), rel=1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("option", [{"rank": 0}, {"gamma": 0.5}, {"alpha": 1.0}])
def test_options_out_of_range_are_refused_in_one_line(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))) as caught:
        RunConfig.parse({"optimizer": {"name": "fira", **option}})
    assert "\n" not in str(caught.value)
