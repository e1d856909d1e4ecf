"""SinkGD: worked matrices, the limits of Sinkhorn's scaling, invariances, and the step that follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.errors import UserError
from assay.optim import optimizers, parameter_groups
from assay.optim.multi_normalization import MultiNormalization
from assay.optim.sinkgd import SinkGD, sr_sinkhorn
from assay.training.config import RunConfig


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("passes", [1, 5])
@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (3, 4, 6)])
def test_columns_have_one_norm_after_each_pass_and_the_mean_square_is_one(
    shape: tuple[int, ...], passes: int
) -> None:
    x = sr_sinkhorn(draw(*shape), passes)
    norms = x.norm(dim=-2)
    torch.testing.assert_close(norms, torch.full_like(norms, shape[-2] ** 0.5))
    torch.testing.assert_close(x.square().mean((-2, -1)), torch.ones(shape[:-2], dtype=torch.float64))


def test_rows_come_to_theirs_in_the_limit() -> None:
    gradient = draw(5, 7)
    wrong = [(sr_sinkhorn(gradient, passes).norm(dim=1) - 7**0.5).abs().max().item() for passes in (1, 5, 200)]
    assert wrong[0] > wrong[1] > 1e-3
    assert wrong[2] < 1e-12


def test_it_is_the_alternation_that_it_says() -> None:
    x = gradient = draw(6, 4)
    for _ in range(3):
        x = 4**0.5 * x / x.norm(dim=1, keepdim=True)
        x = 6**0.5 * x / x.norm(dim=0, keepdim=True)
    torch.testing.assert_close(sr_sinkhorn(gradient, 3), x)


def test_squares_are_sinkhorns_scaling_of_the_squares() -> None:
    """Of all matrices with these sums it has the least relative entropy to G²: log X² − log G² is a sum u_i + v_j."""
    gradient = draw(4, 6)
    difference = (sr_sinkhorn(gradient, 300).square() / gradient.square()).log()
    centred = difference - difference.mean(0) - difference.mean(1, keepdim=True) + difference.mean()
    assert centred.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("gradient", "passes", "expected"),
    [
        ([[3, -1, 4], [-6, 2, -8]], 1, [[1, -1, 1], [-1, 1, -1]]),
        ([[1, 2, 2], [2, -1, 2]], 1, [[0.63246, 1.26491, 1], [1.26491, -0.63246, 1]]),
        ([[1, 2, 2], [2, -1, 2]], 9, [[0.63246, 1.26491, 1], [1.26491, -0.63246, 1]]),
        ([[3, 4], [0, 5]], 1, [[1.41421, 0.88345], [0, 1.10432]]),
        ([[3, 4], [0, 5]], 5, [[1.41421, 0.43514], [0, 1.34560]]),
        ([[1, -1], [1, 1], [-1, 1]], 4, [[1, -1], [1, 1], [-1, 1]]),
    ],
)
def test_worked_matrices(gradient: list[list[float]], passes: int, expected: list[list[float]]) -> None:
    torch.testing.assert_close(sr_sinkhorn(tensor(gradient), passes), tensor(expected), rtol=0, atol=6e-6)


def test_an_orthogonal_matrix_is_only_enlarged() -> None:
    orthogonal, _ = torch.linalg.qr(draw(5, 5))
    torch.testing.assert_close(sr_sinkhorn(orthogonal, 1), 5**0.5 * orthogonal)


def test_signs_stay_and_scales_do_not_matter() -> None:
    gradient = draw(5, 7)
    x = sr_sinkhorn(gradient)
    assert torch.equal(x.sign(), gradient.sign())
    torch.testing.assert_close(sr_sinkhorn(1e-30 * gradient), x)
    assert torch.equal(sr_sinkhorn(-gradient), -x)
    rows, columns = draw(5, 1, seed=1).exp(), draw(1, 7, seed=2).exp()
    torch.testing.assert_close(sr_sinkhorn(rows * gradient), x)
    apart = [(sr_sinkhorn(columns * gradient, n) - sr_sinkhorn(gradient, n)).abs().max().item() for n in (1, 5, 200)]
    assert apart[0] > apart[1] > 1e-4
    assert apart[2] < 1e-12


def test_rows_and_columns_of_zeros_stay_zero_and_small_ones_do_not_vanish() -> None:
    gradient = draw(4, 6, dtype=torch.float32)
    gradient[1], gradient[:, 2] = 0, 0
    gradient[3] *= 1e-12
    x = sr_sinkhorn(gradient)
    assert not x[1].any()
    assert not x[:, 2].any()
    torch.testing.assert_close(x[[0, 2, 3]].norm(dim=1), torch.full((3,), 2.4), rtol=0.3, atol=0)
    assert torch.equal(sr_sinkhorn(torch.zeros(3, 4)), torch.zeros(3, 4))


def sinkgd(*weights: nn.Parameter, **options: Any) -> SinkGD:
    return SinkGD([{"params": list(weights), "role": "matrix", "decay": True}], lr=0.1, **options)


def test_a_step_moves_each_matrix_along_its_own_direction() -> None:
    shapes = [(6, 4), (4, 6), (6, 4), (5, 2, 3)]
    weights = [nn.Parameter(draw(*shape, seed=place)) for place, shape in enumerate(shapes)]
    starts = [weight.detach().clone() for weight in weights]
    optimizer = sinkgd(*weights, passes=3, scale=0.2, weight_decay=0.5)
    for place, weight in enumerate(weights):
        weight.grad = draw(*weight.shape, seed=10 + place)
    optimizer.step()
    for weight, start in zip(weights, starts, strict=True):
        assert weight.grad is not None
        direction = sr_sinkhorn(weight.grad.flatten(1), 3).view_as(weight)
        torch.testing.assert_close(weight.detach(), (1 - 0.1 * 0.5) * start - 0.1 * 0.2 * direction)


def test_matrices_have_no_state_and_the_rest_is_adamws_bit_for_bit() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 6, bias=False), nn.LayerNorm(6))

    ours, theirs = network(), network()
    one = optimizers.build("sinkgd", params=parameter_groups(ours), lr=0.01)
    other = optimizers.build("adamw", params=parameter_groups(theirs), lr=0.01)
    for step in range(4):
        for optimizer, model in ((one, ours), (other, theirs)):
            for index, p in enumerate(model.parameters()):
                p.grad = draw(*p.shape, seed=10 * step + index).float()
            optimizer.step()
    assert set(one.state) == {ours[0].weight, ours[2].weight, ours[2].bias}
    assert not torch.equal(ours[1].weight, theirs[1].weight)
    for layer in (0, 2):
        assert all(
            torch.equal(a, b) for a, b in zip(ours[layer].parameters(), theirs[layer].parameters(), strict=True)
        )


def test_bfloat16_gradients_are_normalized_in_float32() -> None:
    weight = nn.Parameter(torch.zeros(12, 20, dtype=torch.bfloat16))
    weight.grad = draw(12, 20).bfloat16()
    sinkgd(weight, scale=1.0).step()
    expected = (-0.1 * sr_sinkhorn(weight.grad.float())).bfloat16()
    torch.testing.assert_close(weight.detach(), expected, rtol=2**-7, atol=0)


def test_it_is_multi_normalization_by_rows_and_columns() -> None:
    weights = [nn.Parameter(draw(5, 8)) for _ in range(2)]
    for optimizer, weight in zip((sinkgd, MultiNormalization), weights, strict=True):
        weight.grad = draw(5, 8, seed=1)
        (sinkgd(weight) if optimizer is sinkgd else MultiNormalization([weight], lr=0.1)).step()
    torch.testing.assert_close(*[weight.detach() for weight in weights])


@pytest.mark.parametrize("option", [{"passes": 0}, {"scale": -1.0}, {"momentum": 0.9}])
def test_options_out_of_range_are_refused_in_one_line(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))) as caught:
        RunConfig.parse({"optimizer": {"name": "sinkgd", **option}})
    assert "\n" not in str(caught.value)
