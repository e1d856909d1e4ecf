"""MESA's teacher is the moving average that its definition says, and a run with it goes on where it stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from assay.errors import Interrupted, UserError
from assay.losses import losses
from assay.losses.mesa import MESA, trajectory_penalty
from assay.models import Decoder, ModelConfig
from assay.training.export import load
from assay.training.loop import train
from assay.training.objective import Objective
from assay.training.run_directory import RunDirectory

SIZES = {"depth": 1, "hidden_size": 16, "num_heads": 2, "vocab_size": 11, "max_length": 8}


@pytest.fixture
def tiny(corpus: Path) -> dict[str, Any]:
    return {
        "model": {"depth": 1, "hidden_size": 16, "num_heads": 1},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "training": {"tokens": 12 * 4 * 32, "evaluations": 1, "compile": False},
    }


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "checkpoint" / "model.safetensors")


class Noisy(nn.Module):
    """A model with a buffer that is a number of steps, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.linear(x) * self.scale, 0.5, self.training)


def test_the_teacher_is_the_moving_average_of_what_steps_left() -> None:
    model, progress = Noisy(), [(step + 0.5) / 8 for step in range(8)]
    loss = MESA(model, horizon=0.5)
    share = 1 - math.exp(-1 / (8 * 0.5))
    model.linear.weight.data.add_(1)
    expected = model.linear.weight.detach().clone()
    for step in range(8):
        loss.begin_step(model, step, progress[step])
        torch.testing.assert_close(loss.teacher.linear.weight, expected)
        assert (loss.teacher.scale[0].item(), loss.teacher.steps.item()) == pytest.approx(
            (expected_scale(step), step)
        )
        model.linear.weight.data.mul_(1.5)
        model.steps += 1
        model.scale.zero_()
        expected = (1 - share) * expected + share * model.linear.weight.detach()


def expected_scale(step: int) -> float:
    """Of a buffer that is 1 before the first step, and 0 after it."""
    return math.exp(-step / 4)


def test_it_is_cross_entropy_and_the_divergence_from_the_teacher() -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**SIZES))
    loss = MESA(model, weight=0.7, temperature=3.0, start=0.0, label_smoothing=0.1)
    objective = Objective(model, loss, "float32")
    for p in model.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.5)
    ids, targets = torch.randint(11, (2, 8)), torch.randint(11, (2, 8))
    targets[0, :3] = -100
    loss.active = True
    earlier = loss.teacher(ids)
    z = model(ids)
    penalty = trajectory_penalty(z, earlier, 3.0)[targets != -100].mean()
    alone = losses.build("cross-entropy", {"label_smoothing": 0.1})(z, targets)
    torch.testing.assert_close(objective(ids, targets), alone + 0.7 * penalty)
    assert penalty > 0.01
    assert not any(p.requires_grad for p in loss.parameters())


def test_the_teacher_evaluates_while_the_model_trains() -> None:
    loss = MESA(Noisy(), start=0.0)
    loss.train()
    loss.active = True
    x = torch.randn(4, 3)
    assert loss.training
    assert torch.equal(loss.read(x), loss.read(x))


@pytest.mark.parametrize("values", [{"loss.weight": 0.0}, {"loss.start": 1.0}])
def test_without_the_penalty_a_run_is_the_plain_one(
    tiny: dict[str, Any], tmp_path: Path, values: dict[str, Any]
) -> None:
    train(tiny, out=tmp_path / "plain")
    train(tiny, out=tmp_path / "mesa", values={"loss": "mesa", **values})
    plain, with_teacher = weights(tmp_path / "plain"), weights(tmp_path / "mesa")
    assert all(torch.equal(tensor, with_teacher[name]) for name, tensor in plain.items())
    ids = torch.arange(8)[None]
    assert torch.equal(load(tmp_path / "mesa")(ids), load(tmp_path / "plain")(ids))
    assert {name for name in with_teacher if name not in plain} == {
        f"loss.teacher.{name.removeprefix('model.')}" for name in plain
    }


def test_stopped_anywhere_and_in_micro_batches_it_ends_alike(tiny: dict[str, Any], tmp_path: Path) -> None:
    values = {"loss": {"name": "mesa", "horizon": 0.3}, "training.checkpoint_seconds": 1e9}
    whole = train(tiny, out=tmp_path / "whole", values=values)
    plain = train(tiny, out=tmp_path / "plain")
    assert whole.bits_per_byte != plain.bits_per_byte
    for asked in (1, 7):
        out = tmp_path / f"stopped{asked}"
        with pytest.raises(Interrupted):
            train(tiny, out=out, values=values, stop=After(asked))
        assert train(tiny, out=out, values=values, resume=True).bits_per_byte == whole.bits_per_byte
        one, two = weights(tmp_path / "whole"), weights(out)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    train(tiny, out=tmp_path / "micro", values={**values, "training.micro_batch_size": 1})
    for name, tensor in weights(tmp_path / "micro").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "whole")[name], rtol=1e-3, atol=1e-4)


def test_in_bfloat16_the_teacher_is_too(tiny: dict[str, Any], tmp_path: Path) -> None:
    values = {"loss": {"name": "mesa", "start": 0.0, "horizon": 0.3}}
    exact = train(tiny, out=tmp_path / "float32", values=values)
    found = train(tiny, out=tmp_path / "bfloat16", values={**values, "training.precision": "bfloat16"})
    assert found.bits_per_byte != exact.bits_per_byte
    assert found.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=0.02)


def test_a_run_with_another_loss_can_be_gone_on_with(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "plain")
    values = {"start.run": str(tmp_path / "plain"), "loss": {"name": "mesa", "horizon": 1e9}}
    train(tiny, out=tmp_path / "branch", values=values)
    start, end = weights(tmp_path / "plain"), weights(tmp_path / "branch")
    for name, tensor in start.items():
        torch.testing.assert_close(end[f"loss.teacher.{name.removeprefix('model.')}"], tensor, rtol=0, atol=1e-6)
    train(tiny, out=tmp_path / "back", values={"start.run": str(tmp_path / "branch")})
    assert RunDirectory(tmp_path / "back").summary() is not None


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"weight": -1}, "option weight=-1: input should be greater than or equal to 0"),
        ({"start": 2}, "option start=2: input should be less than or equal to 1"),
        ({"horizon": 0}, "option horizon=0: input should be greater than 0"),
    ],
)
def test_bad_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        losses.validate("mesa", options)


class After:
    """Set from the n-th time on that it is asked."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0
