"""Runs that train some parameters at a time: they go on bit for bit, and their checkpoints hold what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from assay.errors import Interrupted
from assay.training.loop import train

SELECTIONS: dict[str, dict[str, Any]] = {
    "lisa": {"selection": {"name": "lisa", "layers": 1, "every": 3}},
    "lisa, states kept": {"selection": {"name": "lisa", "layers": 1, "every": 3, "reset_state": False}},
    "owlore": {"selection": {"name": "owlore", "layers": 1, "every": 3, "threshold": 3.0}},
    "drop": {"selection": "drop", "optimizer": {"name": "muon", "lr": 3e-3}},
}


class FileThere:
    """Set once the file is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_set(self) -> bool:
        return self.path.exists()


def held(directory: Path, file: str = "model") -> dict[str, torch.Tensor]:
    return load_file(directory / "checkpoint" / f"{file}.safetensors")


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("stop", [4, 6])
def test_a_stopped_run_ends_with_the_same_bits(tiny: dict[str, Any], tmp_path: Path, name: str, stop: int) -> None:
    """Stopped within a window of three steps, and between two."""
    values = {**SELECTIONS[name], "training.keep": [stop / 12]}
    whole = train(tiny, out=tmp_path / "whole", values=values)
    there = FileThere(tmp_path / "stopped" / "checkpoints" / f"{stop:06d}")
    with pytest.raises(Interrupted):
        train(tiny, out=tmp_path / "stopped", values=values, stop=there)
    again = train(tiny, out=tmp_path / "stopped", values=values, resume=True)
    assert again.bits_per_byte == whole.bits_per_byte
    for file in ("model", "optimizer"):
        one, other = held(tmp_path / "whole", file), held(tmp_path / "stopped", file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_outliers_are_counted_once_for_a_run(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assay.optim.selection import owlore

    calls = []
    count = owlore.outlier_ratios
    monkeypatch.setattr(owlore, "outlier_ratios", lambda *given: calls.append(0) or count(*given))
    values = {**SELECTIONS["owlore"], "training.keep": [0.5]}
    with pytest.raises(Interrupted):
        train(tiny, out=tmp_path / "run", values=values, stop=FileThere(tmp_path / "run" / "checkpoints"))
    first = held(tmp_path / "run", "parts")["selection|scores"]
    assert first.shape == (2,)
    assert first.min() > 0
    train(tiny, out=tmp_path / "run", values=values, resume=True)
    assert torch.equal(held(tmp_path / "run", "parts")["selection|scores"], first)
    assert len(calls) == 1


def test_a_checkpoint_holds_states_of_what_is_trained(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "run", values=SELECTIONS["lisa"])
    names = {name.split("|")[0] for name in held(tmp_path / "run", "optimizer")}
    assert len({name.split(".layers.")[1][0] for name in names if ".layers." in name}) == 1
    assert any("embedding" in name for name in names)


@pytest.mark.parametrize("name", ["lisa", "drop"])
def test_micro_batches_change_rounding_alone(tiny: dict[str, Any], tmp_path: Path, name: str) -> None:
    values = {**SELECTIONS[name], "optimizer": {"name": "muon", "lr": 3e-3}, "training.tokens": 4 * 4 * 32}
    train(tiny, out=tmp_path / "whole", values=values)
    train(tiny, out=tmp_path / "micro", values={**values, "training.micro_batch_size": 2})
    one, other = held(tmp_path / "whole"), held(tmp_path / "micro")
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["lisa", "owlore"])
def test_tuning_starts_from_another_run(tiny: dict[str, Any], tmp_path: Path, name: str) -> None:
    first = train(tiny, out=tmp_path / "first")
    start = {"start.run": str(tmp_path / "first"), "start.optimizer": False}
    second = train(tiny, out=tmp_path / "second", values={**SELECTIONS[name], **start})
    assert first.bits_per_byte is not None
    assert second.bits_per_byte is not None
    assert second.bits_per_byte < first.bits_per_byte
