"""The norm-growth limiter: a bound that always holds, and gradients that are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.errors import UserError
from assay.optim.gradient.norm_growth_limiter import NormGrowthLimiter, limit_growth
from assay.training.config import RunConfig


def tensors(*norms: float) -> list[Tensor]:
    return [norm * nn.functional.normalize(torch.arange(1.0, 7.0), dim=0).view(2, 3) for norm in norms]


def step(limiter: NormGrowthLimiter, model: nn.ParameterList, norms: list[float], number: int) -> list[float]:
    for parameter, gradient in zip(model, tensors(*norms), strict=True):
        parameter.grad = gradient
    limiter(list(model), number)
    return [parameter.grad.norm().item() for parameter in model if parameter.grad is not None]


def test_growth_is_cut_to_gamma_of_the_norm_after_limiting() -> None:
    model = nn.ParameterList(nn.Parameter(torch.zeros(2, 3)) for _ in range(2))
    limiter = NormGrowthLimiter(model, gamma=1.5)
    assert step(limiter, model, [2.0, 1.0], 0) == pytest.approx([2.0, 1.0])
    assert step(limiter, model, [20.0, 1.4], 1) == pytest.approx([3.0, 1.4])
    assert step(limiter, model, [20.0, 0.1], 2) == pytest.approx([4.5, 0.1])
    assert step(limiter, model, [4.0, 1.0], 3) == pytest.approx([4.0, 0.15])


def test_a_direction_is_kept() -> None:
    (gradient,) = tensors(3.0)
    found = gradient.clone()
    norms = limit_growth([found], torch.tensor([1.0]), 1.01)
    torch.testing.assert_close(found, gradient * 1.01 / 3)
    torch.testing.assert_close(norms, torch.tensor([1.01]))


def test_a_first_gradient_and_one_after_zero_are_not_limited() -> None:
    model = nn.ParameterList([nn.Parameter(torch.zeros(2, 3))])
    limiter = NormGrowthLimiter(model)
    assert [step(limiter, model, [norm], 0)[0] for norm in (0.0, 5.0, 0.0, 7.0, 70.0)] == pytest.approx(
        [0.0, 5.0, 0.0, 7.0, 7.07]
    )


def test_each_parameter_is_compared_with_itself_when_others_have_no_gradient() -> None:
    model = nn.ParameterList(nn.Parameter(torch.zeros(2, 3)) for _ in range(2))
    limiter = NormGrowthLimiter(model, gamma=1.0)
    step(limiter, model, [1.0, 4.0], 0)
    second = model[1]
    second.grad = tensors(9.0)[0]
    limiter([second], 1)
    assert second.grad.norm().item() == pytest.approx(4.0)
    assert step(limiter, model, [9.0, 9.0], 2) == pytest.approx([1.0, 4.0])


def test_its_norms_survive_a_checkpoint() -> None:
    model = nn.ParameterList(nn.Parameter(torch.zeros(2, 3)) for _ in range(2))
    first, second = NormGrowthLimiter(model), NormGrowthLimiter(model)
    step(first, model, [1.0, 4.0], 0)
    state = first.state_dict()
    step(first, model, [1.0, 1.0], 1)
    second.load_state_dict(state)
    assert step(second, model, [9.0, 9.0], 1) == pytest.approx([1.01, 4.04])


def test_bfloat16_gradients_are_measured_in_float32() -> None:
    gradient = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    assert limit_growth([gradient], torch.tensor([0.0]), 1.01).item() == pytest.approx(64.0)
    assert limit_growth([gradient], torch.tensor([32.0]), 1.0).item() == pytest.approx(32.0)
    assert torch.equal(gradient, torch.full_like(gradient, 0.5))


@pytest.mark.parametrize("option", [{"gamma": 0.9}, {"eta": 1.0}])
def test_options_out_of_range_are_refused_in_one_line(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))) as caught:
        RunConfig.parse({"gradient": {"name": "norm-growth-limiter", **option}})
    assert "\n" not in str(caught.value)
