"""A run that starts where another stopped is the run that did not stop; kept checkpoints; the average at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from assay.errors import Interrupted, UserError
from assay.training.config import RunConfig
from assay.training.export import export, is_run, load, tokenizer_of
from assay.training.loop import train
from assay.training.run_directory import RunDirectory

CONSTANT = {"schedule": {"name": "constant", "warmup": 0.0}}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "checkpoint" / "model.safetensors")


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Switch:
    """Set once a file is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_set(self) -> bool:
        return self.path.exists()


def kept(directory: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(directory / "checkpoints" / f"{step:06d}" / "model.safetensors")


def test_going_on_from_a_kept_checkpoint_is_going_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    whole = train(tiny, out=tmp_path / "whole", values={**CONSTANT, "training.keep": [1 / 3, 1.0]})
    assert equal(kept(tmp_path / "whole", 12), weights(tmp_path / "whole"))
    start = {"start.run": str(tmp_path / "whole" / "checkpoints" / "000004")}
    branch = {**CONSTANT, **start, "training.tokens": 8 * 4 * 32}
    assert train(tiny, out=tmp_path / "branch", values=branch).bits_per_byte == whole.bits_per_byte
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "branch"))
    anew = train(tiny, out=tmp_path / "anew", values={**branch, "start.optimizer": False})
    elsewhere = train(tiny, out=tmp_path / "elsewhere", values={**branch, "start.data": False})
    assert len({whole.bits_per_byte, anew.bits_per_byte, elsewhere.bits_per_byte}) == 3


def test_a_branch_uses_its_own_rate(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "first", values=CONSTANT)
    values = {**CONSTANT, "start.run": str(tmp_path / "first"), "optimizer.lr": 0.0005}
    train(tiny, out=tmp_path / "second", values=values)
    rows = list(RunDirectory(tmp_path / "second").metrics())
    assert {row["lr"] for row in rows if "lr" in row} == {0.0005}


def test_the_whole_text_is_read_where_a_checkpoint_is_kept(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "run", values={**CONSTANT, "training.keep": [0.5]})
    half = {**CONSTANT, "training.tokens": 6 * 4 * 32}
    summary = train(tiny, out=tmp_path / "half", values=half)
    rows = [row for row in RunDirectory(tmp_path / "run").metrics() if "bits_per_byte" in row]
    assert [row["bits_per_byte"] for row in rows if row["step"] == 6] == [summary.bits_per_byte]


@pytest.mark.parametrize("point", [0.01, 0.3, 0.36, 0.45, 0.5, 1.0])
def test_a_checkpoint_is_kept_at_the_nearest_step(tiny: dict[str, Any], tmp_path: Path, point: float) -> None:
    """Of 11 steps; so the schedule, which is asked in the middle of a step, agrees on which is the last before it."""
    values = {**CONSTANT, "training.tokens": 11 * 4 * 32, "training.keep": [point]}
    train(tiny, out=tmp_path / "run", values=values)
    found = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert found == [max(1, math.ceil(11 * point - 0.5))]


def test_a_kept_checkpoint_is_opened_like_a_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "run", values={"training.keep": [0.5]})
    place = tmp_path / "run" / "checkpoints" / "000006"
    opened = load(place)
    assert equal({f"model.{name}": value for name, value in opened.state_dict().items()}, kept(tmp_path / "run", 6))
    assert tokenizer_of(place).name == tokenizer_of(tmp_path / "run").name
    assert export(place, tmp_path / "exported").joinpath("config.json").exists()
    assert not is_run(tmp_path / "run" / "checkpoints" / "000007")


def test_ids_tell_starts_apart_by_their_weights(tiny: dict[str, Any], tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tiny, out=tmp_path / str(seed), values={"seed": seed})
    (tmp_path / "moved").symlink_to(tmp_path / "0")

    def identity(run: str, seed: int = 0, **options: Any) -> str:
        start = {"name": "checkpoint", "run": str(tmp_path / run), **options}
        return RunConfig.parse({**tiny, "start": start, "seed": seed}).run_id("data")

    assert identity("0") == identity("moved") == identity("{seed}")
    assert (
        len({identity("0"), identity("1"), identity("0", optimizer=False), RunConfig.parse(tiny).run_id("data")}) == 4
    )
    assert identity("{seed}", seed=1) == identity("1", seed=1)


def test_a_start_that_does_not_fit_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint; give the directory of a run"):
        train(tiny, out=tmp_path / "run", values={"start.run": str(tmp_path / "nothing")})
    assert not (tmp_path / "run").exists()
    train(tiny, out=tmp_path / "first")
    with pytest.raises(UserError, match="does not fit this model"):
        train(tiny, out=tmp_path / "wide", values={"start.run": str(tmp_path / "first"), "model.hidden_size": 64})


def test_the_end_is_the_average_of_the_last_weights(tiny: dict[str, Any], tmp_path: Path) -> None:
    values = {**CONSTANT, "training.keep": [10 / 12, 11 / 12, 1.0]}
    train(tiny, out=tmp_path / "plain", values=values)
    average = {"average": {"name": "mean", "last": 3, "spacing": 1 / 12}, "training.checkpoint_seconds": 0}
    summary = train(tiny, out=tmp_path / "averaged", values={**CONSTANT, **average})
    last = [kept(tmp_path / "plain", step) for step in (10, 11, 12)]
    for name, value in weights(tmp_path / "averaged").items():
        torch.testing.assert_close(value, sum(w[name] for w in last) / 3, rtol=1e-6, atol=1e-8)
    assert not (tmp_path / "averaged" / "averaging").exists()
    first = Switch(tmp_path / "stopped" / "averaging" / "000010.safetensors")
    with pytest.raises(Interrupted):
        train(tiny, out=tmp_path / "stopped", values={**CONSTANT, **average}, stop=first)
    assert RunDirectory(tmp_path / "stopped").averaging_path.exists()
    again = train(tiny, out=tmp_path / "stopped", values={**CONSTANT, **average}, resume=True)
    assert again.bits_per_byte == summary.bits_per_byte
    with pytest.raises(UserError, match="more than a whole run"):
        train(tiny, out=tmp_path / "long", values={"average": {"name": "mean", "last": 6, "spacing": 0.2}})
