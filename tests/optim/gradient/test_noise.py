"""Gradient noise: its deviations, what it does to weights, and random numbers that follow from seed and step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from assay.errors import Interrupted, UserError
from assay.optim.gradient.noise import GradientNoise
from assay.training.config import RunConfig
from assay.training.loop import train


def zero_gradients(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return parameters


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (0.01, [0.1, 0.082645, 0.053088, 0.028184, 0.014962, 0.007943]),
        (0.3, [0.547723, 0.452665, 0.290777, 0.154369, 0.081952, 0.043507]),
        (1.0, [1.0, 0.82645, 0.530884, 0.281838, 0.149624, 0.079433]),
    ],
)
def test_worked_deviations(eta: float, expected: list[float]) -> None:
    found = [GradientNoise(eta=eta).deviation(step) for step in (0, 1, 9, 99, 999, 9999)]
    assert found == pytest.approx(expected, abs=6e-7)


def test_without_decay_the_variance_stays() -> None:
    assert GradientNoise(eta=0.3, gamma=0.0).deviation(12345) ** 2 == pytest.approx(0.3)


def test_mean_and_variance_are_as_they_say() -> None:
    noise = GradientNoise(seed=3, eta=0.3)
    (parameter,) = zero_gradients((1000, 1000))
    noise([parameter], 9)
    assert parameter.grad is not None
    variance = noise.deviation(9) ** 2
    assert abs(parameter.grad.double().mean().item()) < 5 * math.sqrt(variance / 1e6)
    assert abs(parameter.grad.double().var().item() - variance) < 5 * variance * math.sqrt(2 / 1e6)
    shares = [(parameter.grad < k * variance**0.5).double().mean().item() for k in (-1, 0, 2)]
    assert shares == pytest.approx([0.158655, 0.5, 0.97725], abs=0.0025)


def test_it_is_added_to_what_is_there() -> None:
    parameters, bare = zero_gradients((3, 4), (5,)), zero_gradients((3, 4), (5,))
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    for drawn in (parameters, bare):
        GradientNoise(seed=1)(drawn, 7)
    for one, other in zip(parameters, bare, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad - 2, other.grad, atol=1e-6, rtol=0)


def test_without_eta_gradients_stay_and_no_number_is_drawn() -> None:
    parameters = zero_gradients((4, 4))
    before = torch.get_rng_state()
    GradientNoise(seed=1, eta=0.0)(parameters, 0)
    GradientNoise(seed=1)(zero_gradients((4, 4)), 0)
    assert parameters[0].grad is not None
    assert not parameters[0].grad.any()
    assert torch.equal(before, torch.get_rng_state())


def test_weights_without_gradient_walk_as_far_as_the_sum_of_variances() -> None:
    noise = GradientNoise(seed=0, eta=0.1)
    (weight,) = zero_gradients((400, 500))
    optimizer = torch.optim.SGD([weight], lr=0.2)
    for step in range(30):
        optimizer.zero_grad(set_to_none=False)
        noise([weight], step)
        optimizer.step()
    expected = 0.2**2 * sum(noise.deviation(step) ** 2 for step in range(30))
    assert weight.detach().var().item() == pytest.approx(expected, rel=5 * math.sqrt(2 / 200_000))


def test_seed_and_step_decide_the_numbers_and_parameters_differ() -> None:
    def drawn(seed: int, step: int) -> list[torch.Tensor]:
        parameters = zero_gradients((6,), (6,))
        noise = GradientNoise(seed=seed, gamma=0.0)
        noise(parameters, step)
        return [p.grad for p in parameters if p.grad is not None]

    first, again = drawn(0, 5), drawn(0, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    kinds = [first[0], first[1], drawn(0, 6)[0], drawn(1, 5)[0], drawn(5, 0)[0]]
    assert len({tuple(kind.tolist()) for kind in kinds}) == len(kinds)


class After:
    """Set from the n-th time on that it is asked."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("gradient", [{"name": "noise", "eta": 1e-4}, {"name": "norm-growth-limiter", "gamma": 1.0}])
def test_a_stopped_run_ends_with_the_same_bits(gradient: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    config = {
        "model": {"depth": 2, "hidden_size": 32, "num_heads": 2},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
        "training": {"tokens": 8 * 4 * 32, "evaluations": 2, "compile": False, "checkpoint_seconds": 1e9},
    }

    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / name / "checkpoint" / "model.safetensors")

    train(config, out=tmp_path / "plain")
    train(config, out=tmp_path / "whole", values={"gradient": gradient})
    with pytest.raises(Interrupted):
        train(config, out=tmp_path / "stopped", values={"gradient": gradient}, stop=After(3))
    train(config, out=tmp_path / "stopped", values={"gradient": gradient}, resume=True)
    assert all(torch.equal(weights("whole")[key], weights("stopped")[key]) for key in weights("whole"))
    assert not all(torch.equal(weights("whole")[key], weights("plain")[key]) for key in weights("whole"))


def test_it_is_added_once_per_step_and_not_per_micro_batch(corpus: Path, tmp_path: Path) -> None:
    """Of 8 steps the weights after noise of this size are all noise, so that one more draw would show."""
    config = {
        "model": {"depth": 1, "hidden_size": 32, "num_heads": 2},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
        "training": {"tokens": 8 * 4 * 32, "evaluations": 1, "compile": False},
        "gradient": {"name": "noise", "eta": 1.0},
    }
    losses = [
        train(config, out=tmp_path / str(size), values={"training.micro_batch_size": size}).bits_per_byte
        for size in (4, 1)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize("option", [{"eta": -0.1}, {"gamma": -1.0}, {"sigma": 1.0}])
def test_options_out_of_range_are_refused_in_one_line(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))) as caught:
        RunConfig.parse({"gradient": {"name": "noise", **option}})
    assert "\n" not in str(caught.value)
