"""Checkpoints: what is read is what was written, and a failed write leaves the old one."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import AssayError, UserError
from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize
from assay.optim import optimizers, parameter_groups
from assay.training import checkpoint
from assay.training.checkpoint import State, load, save

SIZES = {"depth": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 31, "max_length": 8}
STATE = State(step=3, seconds=0.1, metrics_size=77)


def made(optimizer: str = "muon", seed: int = 0, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Decoder(ModelConfig(**SIZES, **options))
    initialize(model, seed, 0.1)
    return model, optimizers.build(optimizer, params=parameter_groups(model), lr=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        ids = torch.randint(31, (4, 9), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All parameters, and the whole state of the optimizer, by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    states = {
        f"{names[parameter]}|{name}": value
        for parameter, values in optimizer.state.items()
        for name, value in values.items()
    }
    found = {**dict(model.state_dict()), **states}
    return {name: torch.as_tensor(value).clone() for name, value in found.items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("options", [{}, {"norm": "seednorm", "head": "tied", "position": "learned"}])
def test_round_trip_bit_for_bit(tmp_path: Path, optimizer: str, options: dict[str, Any]) -> None:
    model, updates = made(optimizer, **options)
    train(model, updates, range(3))
    before = bits(model, updates)
    save(tmp_path / "checkpoint", model, updates, STATE)
    assert_equal(bits(model, updates), before)

    other, fresh = made(optimizer, seed=1, **options)
    state = load(tmp_path / "checkpoint", other, fresh)
    assert state is not None
    assert (state.step, state.seconds, state.metrics_size) == (3, 0.1, 77)
    assert_equal(bits(other, fresh), before)
    for old, new in zip(updates.param_groups, fresh.param_groups, strict=True):
        for name in old.keys() - {"params"}:
            assert json.dumps(old[name]) == json.dumps(new[name])

    train(model, updates, range(3, 6))
    train(other, fresh, range(3, 6))
    assert_equal(bits(other, fresh), bits(model, updates))


def test_muons_two_kinds_of_state_are_both_there(tmp_path: Path) -> None:
    model, optimizer = made()
    train(model, optimizer, range(2))
    save(tmp_path / "checkpoint", model, optimizer, STATE)
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "checkpoint" / "optimizer.safetensors")
    kinds: dict[str, set[str]] = {}
    for key in stored:
        parameter, _, name = key.rpartition("|")
        kinds.setdefault(parameter, set()).add(name)
    assert kinds.keys() == dict(model.named_parameters()).keys()
    assert kinds["layers.0.mixer.branch.query.weight"] == {"momentum"}
    assert kinds["embedding.weight"] == kinds["final_norm.weight"] == {"step", "exp_avg", "exp_avg_sq"}


def test_only_safetensors_and_json_and_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError("unpickled")

    model, optimizer = made()
    train(model, optimizer, range(1))
    for module, name in (
        (torch, "load"),
        (torch, "save"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    save(tmp_path / "checkpoint", model, optimizer, STATE)
    files = sorted(p.name for p in (tmp_path / "checkpoint").iterdir())
    assert files == ["model.safetensors", "optimizer.safetensors", "state.json"]
    for name in files[:2]:
        content = (tmp_path / "checkpoint" / name).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert all({"dtype", "shape", "data_offsets"} == entry.keys() for k, entry in header.items() if k[0] != "_")
    json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert load(tmp_path / "checkpoint", *made(seed=1)) is not None


def test_a_checkpoint_replaces_the_last_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    model, optimizer = made()
    for step in range(3):
        train(model, optimizer, range(step, step + 1))
        save(tmp_path / "checkpoint", model, optimizer, State(step=step, seconds=0, metrics_size=0))
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    other, fresh = made(seed=1)
    state = load(tmp_path / "checkpoint", other, fresh)
    assert state is not None
    assert state.step == 2
    assert_equal(bits(other, fresh), bits(model, optimizer))


def test_there_may_be_none(tmp_path: Path) -> None:
    model, optimizer = made()
    before = bits(model, optimizer)
    assert load(tmp_path / "checkpoint", model, optimizer) is None
    assert_equal(bits(model, optimizer), before)


def test_a_process_that_does_not_write_writes_nothing(tmp_path: Path) -> None:
    model, optimizer = made()
    train(model, optimizer, range(1))
    save(tmp_path / "checkpoint", model, optimizer, STATE, write=False)
    assert not list(tmp_path.iterdir())


class TestFailedWrites:
    """However the second write fails, the first checkpoint is what is loaded."""

    @pytest.fixture
    def first(self, tmp_path: Path) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, torch.Tensor]]:
        model, optimizer = made()
        train(model, optimizer, range(1))
        save(tmp_path / "checkpoint", model, optimizer, STATE)
        before = bits(model, optimizer)
        train(model, optimizer, range(1, 3))
        return model, optimizer, before

    def loads(self, path: Path, expected: dict[str, torch.Tensor]) -> None:
        other, fresh = made(seed=1)
        assert load(path, other, fresh) is not None
        assert_equal(bits(other, fresh), expected)

    @pytest.mark.parametrize("stage", ["model.safetensors", "optimizer.safetensors", "state.json"])
    def test_while_a_file_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any, stage: str
    ) -> None:
        model, optimizer, before = first
        for function in ("save_file", "write_json"):
            real = getattr(checkpoint, function)

            def full(value: Any, path: Any, real: Any = real, **options: Any) -> None:
                value, path = (path, value) if isinstance(value, Path) else (value, path)
                if path.name == stage:
                    path.write_bytes(b"half")
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                real(value, path, **options) if real.__name__ == "save_file" else real(path, value)

            monkeypatch.setattr(checkpoint, function, full)
        with pytest.raises(AssayError, match=r"no space left to write .*checkpoint"):
            save(tmp_path / "checkpoint", model, optimizer, STATE)
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
        self.loads(tmp_path / "checkpoint", before)

    def test_safetensors_own_errors_are_the_systems(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any
    ) -> None:
        from safetensors import SafetensorError

        model, optimizer, before = first

        def full(*arguments: Any, **options: Any) -> None:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr(checkpoint, "save_file", full)
        with pytest.raises(AssayError, match="no space left"):
            save(tmp_path / "checkpoint", model, optimizer, STATE)
        self.loads(tmp_path / "checkpoint", before)

    @pytest.mark.parametrize("which", [0, 1])
    def test_at_one_of_the_two_renames(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any, which: int
    ) -> None:
        model, optimizer, before = first
        with monkeypatch.context() as patch:
            self.fail_at_rename(patch, which)
            with pytest.raises(AssayError, match="cannot write"):
                save(tmp_path / "checkpoint", model, optimizer, STATE)
        self.loads(tmp_path / "checkpoint", before)
        save(tmp_path / "checkpoint", model, optimizer, STATE)
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
        self.loads(tmp_path / "checkpoint", bits(model, optimizer))

    def test_between_the_renames_and_then_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any
    ) -> None:
        """With ``checkpoint.old`` alone left, it must outlive the next failure too."""
        model, optimizer, before = first
        (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
        with monkeypatch.context() as patch:
            self.fail_at_rename(patch, 0)
            with pytest.raises(AssayError, match="cannot write"):
                save(tmp_path / "checkpoint", model, optimizer, STATE)
        self.loads(tmp_path / "checkpoint", before)

    def fail_at_rename(self, patch: pytest.MonkeyPatch, which: int) -> None:
        real, left = Path.rename, [which]

        def rename(path: Path, target: Path) -> Path:
            if path.parent != target.parent or not path.name.startswith("checkpoint"):
                return real(path, target)
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path, target)

        patch.setattr(Path, "rename", rename)


@pytest.mark.parametrize("options", [{"mlp": "relu2"}, {"norm": "seednorm"}])
def test_another_model_is_refused_in_one_line(tmp_path: Path, options: dict[str, Any]) -> None:
    model, optimizer = made()
    train(model, optimizer, range(1))
    save(tmp_path / "checkpoint", model, optimizer, STATE)
    with pytest.raises(UserError, match="does not fit this model") as caught:
        load(tmp_path / "checkpoint", *made(**options))
    assert "\n" not in str(caught.value)


def test_parameters_that_never_had_a_gradient_have_no_state_and_that_is_kept(tmp_path: Path) -> None:
    def half_used() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})
        return model, optimizers.build("muon", params=parameter_groups(model), lr=0.01)

    model, optimizer = half_used()
    model["used"](torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    save(tmp_path / "checkpoint", model, optimizer, STATE)
    other, fresh = half_used()
    assert load(tmp_path / "checkpoint", other, fresh) is not None
    assert_equal(dict(other.state_dict()), dict(model.state_dict()))
    for m, o in ((model, optimizer), (other, fresh)):
        o.zero_grad()
        (m["used"](torch.ones(2, 3)) + m["unused"](torch.ones(2, 3))).square().sum().backward()
        o.step()
    assert_equal(dict(other.state_dict()), dict(model.state_dict()))
