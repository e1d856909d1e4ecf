"""GaLore against AdamW in the basis that it takes, its subspace, its counters, and a run that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from assay.errors import Interrupted, UserError
from assay.optim import optimizers, parameter_groups
from assay.optim.galore import GaLore
from assay.optim.projection import as_parameter, as_tall, leading_directions
from assay.training.config import RunConfig
from assay.training.loop import train


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def galore(*weights: nn.Parameter, **options: Any) -> GaLore:
    return GaLore([{"params": list(weights), "role": "matrix", "decay": True}], lr=0.1, **options)


def advance(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradient: Tensor) -> Tensor:
    before = weight.detach().clone()
    weight.grad = gradient.to(weight.dtype)
    optimizer.step()
    return weight.detach() - before


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_at_full_rank_it_is_adamw_in_the_basis_of_the_first_gradient(
    shape: tuple[int, int], weight_decay: float
) -> None:
    """The rotated weights take AdamW's steps, but for the decay, which comes after the step and not before it."""
    weight = nn.Parameter(draw(*shape))
    first = draw(*shape, seed=1)
    _, _, directions = torch.linalg.svd(as_tall(first), full_matrices=False)
    rotated = nn.Parameter(as_tall(weight.detach()) @ directions.mT)
    ours = galore(weight, rank=9, scale=1.0, eps=0.0, weight_decay=weight_decay)
    adam = torch.optim.AdamW([rotated], lr=0.1, betas=(0.9, 0.95), eps=0.0, weight_decay=0.0)
    for step in range(5):
        gradient = first if step == 0 else draw(*shape, seed=step + 1)
        advance(ours, weight, gradient)
        advance(adam, rotated, as_tall(gradient) @ directions.mT)
        with torch.no_grad():
            rotated.mul_(1 - 0.1 * weight_decay)
        torch.testing.assert_close(as_tall(weight.detach()) @ directions.mT, rotated.detach())


def test_what_the_subspace_leaves_out_does_not_move() -> None:
    target, weight = draw(6, 9), nn.Parameter(torch.zeros(6, 9, dtype=torch.float64))
    optimizer = galore(weight, rank=2, weight_decay=0.0)
    for _ in range(20):
        advance(optimizer, weight, weight.detach() - target)
    basis = optimizer.state[weight]["basis"]
    inside = basis @ (basis.mT @ weight.detach())
    assert inside.norm() > 1
    torch.testing.assert_close(weight.detach(), inside)
    torch.testing.assert_close(
        basis, torch.linalg.svd(-target).U[:, :2] * torch.sign(basis[0] * torch.linalg.svd(-target).U[0, :2])
    )


def test_a_basis_is_renewed_by_each_parameters_own_count() -> None:
    one, other = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(6, 4))
    optimizer = galore(one, other, rank=1, update_proj_gap=3)
    renewed: dict[str, list[int]] = {"one": [], "other": []}
    for step in range(8):
        old = {id(p): optimizer.state[p]["basis"] if optimizer.state[p] else None for p in (one, other)}
        one.grad = draw(6, 4, seed=step).float()
        other.grad = draw(6, 4, seed=50 + step).float() if step != 1 else None
        optimizer.step()
        for name, p in (("one", one), ("other", other)):
            if old[id(p)] is not optimizer.state[p]["basis"]:
                renewed[name].append(step)
    assert renewed == {"one": [0, 3, 6], "other": [0, 4, 7]}
    assert optimizer.state[one]["step"] == 8
    assert optimizer.state[other]["step"] == 7


def test_moments_stay_as_they_are_when_the_basis_changes() -> None:
    weight = nn.Parameter(torch.zeros(5, 3, dtype=torch.float64))
    optimizer = galore(weight, rank=2, update_proj_gap=1)
    first = torch.zeros(5, 2, dtype=torch.float64)
    for step in range(4):
        gradient = draw(5, 3, seed=step)
        advance(optimizer, weight, gradient)
        basis = optimizer.state[weight]["basis"]
        first = 0.9 * first + 0.1 * gradient @ basis
        torch.testing.assert_close(optimizer.state[weight]["exp_avg"], first)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_the_state_is_as_small_as_it_says(shape: tuple[int, int]) -> None:
    weight = nn.Parameter(torch.zeros(shape))
    optimizer = galore(weight, rank=4)
    advance(optimizer, weight, draw(*shape))
    kept = sum(value.numel() for name, value in optimizer.state[weight].items() if name != "step")
    assert kept == (2 * 40 + 16) * 4


def test_the_other_roles_are_adamws_bit_for_bit() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(7, 6), nn.LayerNorm(6))

    ours, theirs = network(), network()
    one = optimizers.build("galore", params=parameter_groups(ours), lr=0.01)
    other = optimizers.build("adamw", params=parameter_groups(theirs), lr=0.01)
    for step in range(4):
        for optimizer, model in ((one, ours), (other, theirs)):
            for index, p in enumerate(model.parameters()):
                p.grad = draw(*p.shape, seed=10 * step + index).float()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_kernel_is_a_matrix_of_its_first_axis() -> None:
    kernel = nn.Parameter(draw(6, 2, 3, 2))
    matrix = nn.Parameter(kernel.detach().clone().flatten(1))
    options: dict[str, Any] = {"rank": 3, "update_proj_gap": 2}
    one, other = galore(kernel, **options), galore(matrix, **options)
    for step in range(4):
        gradient = draw(6, 2, 3, 2, seed=step)
        advance(one, kernel, gradient)
        advance(other, matrix, gradient.flatten(1))
    assert torch.equal(kernel.flatten(1), matrix)


def test_bfloat16_parameters_go_where_float32_ones_do() -> None:
    low, high = (nn.Parameter(torch.zeros(24, 10, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))
    optimizers_ = [galore(p, rank=4, weight_decay=0.0) for p in (low, high)]
    for _ in range(5):
        for optimizer, p in zip(optimizers_, (low, high), strict=True):
            advance(optimizer, p, draw(24, 10))
    assert (low - high).norm() < 0.02 * high.norm()


def test_a_zero_gradient_moves_nothing() -> None:
    weight = nn.Parameter(draw(4, 6))
    moved = advance(galore(weight, rank=2, weight_decay=0.0), weight, torch.zeros(4, 6))
    assert torch.equal(moved, torch.zeros_like(moved))


def test_leading_directions_are_orthonormal_and_hold_most_of_the_gradient() -> None:
    gradient = draw(9, 5)
    basis = leading_directions(gradient, 2)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(2, dtype=torch.float64))
    values = torch.linalg.svdvals(gradient)
    torch.testing.assert_close((gradient @ basis).norm(), values[:2].norm())
    assert leading_directions(gradient, 50).shape == (5, 5)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (4, 2, 3)])
def test_matrices_go_back_where_they_came_from(shape: tuple[int, ...]) -> None:
    tensor = draw(*shape)
    assert as_tall(tensor).shape[0] >= as_tall(tensor).shape[1]
    assert torch.equal(as_parameter(as_tall(tensor), tensor), tensor)


class After:
    """Set from the n-th time on that it is asked."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("name", ["galore", "fira"])
def test_a_stopped_run_ends_with_the_same_bits(name: str, corpus: Path, tmp_path: Path) -> None:
    config = {
        "model": {"depth": 2, "hidden_size": 32, "num_heads": 2},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
        "optimizer": {"name": name, "lr": 3e-3, "rank": 4, "update_proj_gap": 3},
        "training": {"tokens": 10 * 4 * 32, "evaluations": 2, "compile": False, "checkpoint_seconds": 1e9},
    }
    train(config, out=tmp_path / "whole")
    for asked in (1, 4, 5):
        out = tmp_path / f"stopped{asked}"
        with pytest.raises(Interrupted):
            train(config, out=out, stop=After(asked))
        train(config, out=out, resume=True)
        one, two = (load_file(path / "checkpoint" / "model.safetensors") for path in (tmp_path / "whole", out))
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("option", [{"rank": 0}, {"update_proj_gap": 0}, {"scale": 0.0}, {"gap": 3}])
def test_options_out_of_range_are_refused_in_one_line(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))) as caught:
        RunConfig.parse({"optimizer": {"name": "galore", **option}})
    assert "\n" not in str(caught.value)
