"""SGDP: torch's SGD where a weight is not scale-invariant, and momentum that does not lengthen it where it is."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import Interrupted, UserError
from assay.optim import optimizers
from assay.optim.sgdp import SGDP
from assay.slots import Component
from assay.training.loop import train


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sgdp(weight: nn.Parameter, lr: float = 0.1, **options: Any) -> SGDP:
    return SGDP([{"params": [weight], "role": "matrix", "decay": True}], lr, **options)


def follow(optimizer: torch.optim.Optimizer, weight: nn.Parameter, towards: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (-F.cosine_similarity(weight, towards, dim=1).sum()).backward()
        optimizer.step()


def start(rows: int = 1, columns: int = 256) -> tuple[nn.Parameter, Tensor]:
    return nn.Parameter(F.normalize(draw(rows, columns), dim=1)), F.normalize(draw(rows, columns, seed=1), dim=1)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_projection_takes_the_part_along_the_weight(nesterov: bool) -> None:
    """The update (1, 2) at the weight (3, 4) becomes (−0.32, 0.24), and with it the buffer unless it is a copy."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    optimizer = sgdp(weight, momentum=0.5, nesterov=nesterov, delta=100.0)
    gradient = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    weight.grad = gradient / 1.5 if nesterov else gradient
    optimizer.step()
    expected = torch.tensor([[3.032, 3.976]], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-8)
    kept = gradient / 1.5 if nesterov else torch.tensor([[-0.32, 0.24]], dtype=torch.float64)
    torch.testing.assert_close(optimizer.state[weight]["momentum"], kept, rtol=0, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"nesterov": True}])
def test_is_torchs_sgd_at_delta_0(options: dict[str, Any]) -> None:
    ours, theirs = nn.Parameter(draw(6, 5)), nn.Parameter(draw(6, 5))
    options = {"momentum": 0.9, **options}
    one, other = sgdp(ours, delta=0.0, **options), torch.optim.SGD([theirs], 0.1, **options)
    for number in range(8):
        ours.grad = theirs.grad = draw(6, 5, seed=number + 1)
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_decay_is_decoupled_and_divided_by_one_minus_momentum() -> None:
    for delta, factor in ((0.0, 1 - 0.1 * 0.2 / 0.25), (100.0, 1 - 0.1 * 0.2 * 0.3 / 0.25)):
        weight = nn.Parameter(draw(4, 3))
        before = weight.detach().clone()
        optimizer = sgdp(weight, momentum=0.75, weight_decay=0.2, wd_ratio=0.3, delta=delta)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), factor * before, rtol=1e-12, atol=1e-12)


def test_without_momentum_it_is_sgd_on_a_scale_invariant_loss() -> None:
    ours, towards = start(4, 64)
    theirs = nn.Parameter(ours.detach().clone())
    follow(sgdp(ours, momentum=0.0), ours, towards, 30)
    follow(torch.optim.SGD([theirs], 0.1), theirs, towards, 30)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_norm_grows_far_less_than_with_plain_momentum_and_never_falls() -> None:
    grown = {}
    for name in ("sgd", "sgdp", "none"):
        weight, towards = start()
        optimizer = (
            torch.optim.SGD([weight], 0.1, momentum=0.9)
            if name == "sgd"
            else sgdp(weight, momentum=0.9 if name == "sgdp" else 0.0)
        )
        norms = [1.0]
        for _ in range(50):
            follow(optimizer, weight, towards, 1)
            norms.append(weight.norm().item())
        grown[name] = norms[-1] - 1
        if name == "sgdp":
            assert all(after >= before * (1 - 1e-12) for before, after in itertools.pairwise(norms))
    assert grown["none"] < grown["sgdp"] < 0.25 * grown["sgd"]


def test_no_buffer_without_momentum() -> None:
    weight = nn.Parameter(draw(3, 4))
    optimizer = sgdp(weight, momentum=0.0)
    weight.grad = draw(3, 4, seed=1)
    optimizer.step()
    assert not optimizer.state.get(weight)


def test_a_run_stopped_and_resumed_is_the_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    values = {"optimizer": {"name": "sgdp", "lr": 0.1, "delta": 3.0, "weight_decay": 1e-4}}
    train(tiny, out=tmp_path / "whole", values=values)
    with pytest.raises(Interrupted):
        train(tiny, out=tmp_path / "stopped", values=values, stop=After(6))
    train(tiny, out=tmp_path / "stopped", values=values, resume=True)
    whole, stopped = (
        load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "stopped")
    )
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


class After:
    """Set from the n-th time on that it is asked."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_mistakes_are_named() -> None:
    for options, message in (
        ({"momentum": 1.0}, "option momentum=1.0"),
        ({"weight_decay": -1}, "option weight_decay=-1"),
        ({"dampening": 0.1}, "'sgdp' has no option 'dampening'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Component.parse(optimizers, {"name": "sgdp", **options})
        assert "\n" not in str(error.value)
