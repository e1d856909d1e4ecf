"""A run against its definition: an explicit loop, itself when stopped, itself in micro-batches and two processes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from assay.config import assign
from assay.data.windows import prepare
from assay.errors import AssayError, Interrupted, UserError
from assay.models import Decoder
from assay.models.initialization import initialize
from assay.optim.constraint.none import Unconstrained
from assay.training.config import RunConfig
from assay.training.loop import train
from assay.training.run_directory import RunDirectory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "checkpoint" / "model.safetensors")


def losses(directory: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in RunDirectory(directory).metrics() if "loss" in row}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class After:
    """Set from the n-th time on that it is asked."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_run_is_the_explicit_loop(tiny_config: RunConfig, tmp_path: Path) -> None:
    summary = train(tiny_config, out=tmp_path / "run")

    data = prepare(tiny_config.data)
    config = tiny_config.with_vocabulary(data.vocab_size)
    model = Decoder(config.model)
    initialize(model, 0, 0.02)
    vectors = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    expected = {}
    for step in range(12):
        progress = (step + 0.5) / 12
        factor = min(1, progress / 0.05) if progress <= 0.8 else (1 - progress) / 0.2
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * factor
        rows = data.batch(step, seed=0, batch_size=4, sequence_length=32)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        expected[step + 1] = loss.item()
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-5)

    nats = 0.0
    with torch.no_grad():
        for inputs, targets in data.evaluation(32, 4):
            nats += F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum").item()
    assert summary.bits_per_byte == pytest.approx(nats / math.log(2) / data.eval_bytes, abs=1e-5)
    assert summary.steps == 12
    assert summary.tokens == 12 * 4 * 32
    assert summary.parameters == sum(p.numel() for p in model.parameters())


def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bits(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["training"]["checkpoint_seconds"] = 1e9
    config = RunConfig.parse(tiny)
    whole = train(config, out=tmp_path / "whole")
    for asked in (1, 5, 8):
        out = tmp_path / f"stopped{asked}"
        with pytest.raises(Interrupted, match="--resume goes on"):
            train(config, out=out, stop=After(asked))
        assert not (out / "summary.json").exists()
        resumed = train(config, out=out, resume=True)
        assert equal(weights(tmp_path / "whole"), weights(out))
        assert losses(out) == losses(tmp_path / "whole")
        assert resumed.bits_per_byte == whole.bits_per_byte


def test_dropout_like_randomness_survives_a_stop(tiny: dict[str, Any], tmp_path: Path) -> None:
    """The random numbers of a step follow from seed and step, so they are the same after a resume."""
    from torch import nn

    from assay.nn.mlp import mlps
    from assay.nn.mlp.gelu import GELU

    class Noisy(GELU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(super().forward(x), 0.2, self.training)

    mlps.names()
    mlps._constructors["noisy"] = Noisy
    try:
        config = RunConfig.parse(assign(tiny, {"model.mlp": "noisy"}))
        train(config, out=tmp_path / "whole")
        with pytest.raises(Interrupted):
            train(config, out=tmp_path / "stopped", stop=After(6))
        train(config, out=tmp_path / "stopped", resume=True)
    finally:
        del mlps._constructors["noisy"]
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


@pytest.mark.parametrize("norm", ["powernorm", "unified-norm"])
def test_running_statistics_survive_a_stop(tiny: dict[str, Any], tmp_path: Path, norm: str) -> None:
    values = {"model.norm": {"name": norm, "warmup": 4}}
    whole = train(tiny, out=tmp_path / "whole", values=values)
    for asked in (3, 7):
        out = tmp_path / f"stopped{asked}"
        with pytest.raises(Interrupted):
            train(tiny, out=out, values=values, stop=After(asked))
        assert train(tiny, out=out, values=values, resume=True).bits_per_byte == whole.bits_per_byte
        assert equal(weights(tmp_path / "whole"), weights(out))
    steps = [tensor.item() for name, tensor in weights(out).items() if name.endswith("norm.steps")]
    assert steps == [12] * 5


def test_a_constraint_holds_after_each_step_and_after_a_stop(tiny: dict[str, Any], tmp_path: Path) -> None:
    values = {"constraint": "normalize-and-project", "optimizer.lr": 0.03}
    train(tiny, out=tmp_path / "whole", values=values)
    with pytest.raises(Interrupted):
        train(tiny, out=tmp_path / "stopped", values=values, stop=After(6))
    config = RunDirectory(tmp_path / "stopped").config()
    model = Decoder(config.with_vocabulary(prepare(config.data).vocab_size).model)
    initialize(model, 0, 0.02)
    name = "layers.1.mlp.branch.up.weight"
    start = model.get_parameter(name).norm().item()
    assert weights(tmp_path / "stopped")[f"model.{name}"].norm().item() == pytest.approx(start, rel=1e-5)
    train(tiny, out=tmp_path / "stopped", values=values, resume=True)
    assert weights(tmp_path / "stopped")[f"model.{name}"].norm().item() == pytest.approx(start, rel=1e-5)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    train(tiny, out=tmp_path / "free", values={**values, "constraint": "none"})
    assert weights(tmp_path / "free")[f"model.{name}"].norm().item() > 1.05 * start


def test_a_constraint_is_told_step_and_rate(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(Unconstrained, "__call__", lambda self, step, lr: told.append((step, lr)))
    train(tiny, out=tmp_path / "run")
    rows = [row for row in RunDirectory(tmp_path / "run").metrics() if "loss" in row]
    assert told == [(row["step"], row["lr"]) for row in rows]


def command(tiny: dict[str, Any], folder: Path, out: Path, *options: str) -> list[str]:
    values = [
        "--set=model.depth=2",
        "--set=model.hidden_size=32",
        "--set=model.num_heads=2",
        f"--set=data.corpus={tiny['data']['corpus']}",
        "--set=data.sequence_length=32",
        "--set=data.batch_size=4",
        "--set=data.eval_bytes=2048",
        "--set=optimizer.lr=0.001",
        "--set=training.compile=false",
    ]
    return ["-m", "assay", "train", "--quiet", f"--out={out}", *values, *options]


def test_killed_and_resumed_it_ends_with_the_same_bits(tiny: dict[str, Any], tmp_path: Path) -> None:
    options = ("--set=training.tokens=25600", "--set=training.checkpoint_seconds=0")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, *command(tiny, tmp_path, whole, *options)], check=True)
    kills = 0
    for attempt in range(3):
        resume = ("--resume",) if attempt else ()
        process = subprocess.Popen([sys.executable, *command(tiny, tmp_path, killed, *options, *resume)])
        before = (killed / "checkpoint" / "state.json").stat().st_mtime_ns if attempt else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            state = killed / "checkpoint" / "state.json"
            try:
                if state.stat().st_mtime_ns > before:
                    time.sleep(0.05 + 0.1 * attempt)
                    process.send_signal(signal.SIGKILL)
                    break
            except FileNotFoundError:
                pass
            time.sleep(0.005)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    subprocess.run([sys.executable, *command(tiny, tmp_path, killed, *options, "--resume")], check=True)
    assert equal(weights(whole), weights(killed))
    assert losses(whole) == losses(killed)


def test_ctrl_c_saves_and_says_how_to_go_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *command(tiny, tmp_path, out, "--set=training.tokens=10M")],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert message.count("\n") == 1
    assert "--resume" in message
    assert json.loads((out / "checkpoint" / "state.json").read_text())["step"] > 0


def bounded(arguments: list[str], environment: dict[str, str]) -> tuple[int | None, str]:
    """Exit status and standard error; after two minutes None, and where each of its Python processes was."""
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONFAULTHANDLER": "1"},
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors
    except subprocess.TimeoutExpired:
        family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        for pid in [*family, process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
        return None, process.communicate()[1]


@pytest.mark.parametrize("selection", ["all", "drop"])
def test_two_processes_train_like_one(tiny: dict[str, Any], tmp_path: Path, selection: str) -> None:
    options = ("--set=training.tokens=3840", f"--set=selection={selection}")
    one, two = tmp_path / "one", tmp_path / "two"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command(tiny, tmp_path, one, *options)], check=True, env=environment)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    status, errors = bounded([sys.executable, *torchrun, *command(tiny, tmp_path, two, *options)], environment)
    if status is None:  # joining two processes can hang for reasons of the machine; a second hang is ours
        warnings.warn(f"two processes hung and were started again; where they were: {errors}", stacklevel=1)
        two = tmp_path / "again"
        status, errors = bounded([sys.executable, *torchrun, *command(tiny, tmp_path, two, *options)], environment)
    assert status == 0, errors
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    values = [RunDirectory(path).summary().bits_per_byte for path in (one, two)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_micro_batches_do_not_change_the_loss(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "whole")
    train(tiny, out=tmp_path / "micro", values={"training.micro_batch_size": 1})
    assert losses(tmp_path / "micro") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_a_diverged_run_is_an_outcome(tiny: dict[str, Any], tmp_path: Path) -> None:
    values = {"optimizer.lr": 1e18, "training.grad_clip": 1e30, "schedule": {"name": "constant", "warmup": 0.0}}
    summary = train(tiny, out=tmp_path / "run", values=values)
    assert summary.status == "diverged"
    assert summary.bits_per_byte is None
    assert 1 < summary.diverged_at <= 12
    assert losses(tmp_path / "run")[summary.diverged_at] is None
    assert train(tiny, out=tmp_path / "run", values=values, resume=True) == summary


def test_bfloat16_is_close_to_float32(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "full")
    train(tiny, out=tmp_path / "half", values={"training.precision": "bfloat16"})
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "full"), rel=0.02)
    assert losses(tmp_path / "half") != losses(tmp_path / "full")


@pytest.mark.parametrize("budget", ["flops", "seconds"])
def test_budgets_end_when_they_are_spent(tiny: dict[str, Any], tmp_path: Path, budget: str) -> None:
    by_tokens = train(tiny, out=tmp_path / "tokens")
    del tiny["training"]["tokens"]
    if budget == "flops":
        summary = train(tiny, out=tmp_path / "flops", values={"training.flops": by_tokens.flops * 1.01})
        assert summary.steps == by_tokens.steps
        assert summary.bits_per_byte == by_tokens.bits_per_byte
    else:
        summary = train(tiny, out=tmp_path / "seconds", values={"training.seconds": 0.3})
        last = [row for row in RunDirectory(tmp_path / "seconds").metrics() if "loss" in row]
        assert summary.seconds >= 0.3
        assert last[-2]["seconds"] < 0.3


def test_compiled_runs_agree_with_eager_ones_and_share_a_graph(tiny: dict[str, Any], tmp_path: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for seed in (0, 1):
        train(tiny, out=tmp_path / f"eager{seed}", values={"seed": seed})
        compiled = train(tiny, out=tmp_path / f"compiled{seed}", values={"seed": seed, "training.compile": True})
        assert compiled.compiled
        assert losses(tmp_path / f"compiled{seed}") == pytest.approx(losses(tmp_path / f"eager{seed}"), abs=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_tracker_gets_the_metrics(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "run", values={"training.trackers": ["tensorboard"]})
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    with pytest.raises(UserError, match="no-such"):
        train(tiny, out=tmp_path / "other", values={"training.trackers": ["no-such"]})


class TestDirectory:
    def test_a_run_is_not_overwritten(self, tiny: dict[str, Any], tmp_path: Path) -> None:
        train(tiny, out=tmp_path / "run")
        with pytest.raises(UserError, match="already holds a run"):
            train(tiny, out=tmp_path / "run")

    def test_another_configuration_is_refused(self, tiny: dict[str, Any], tmp_path: Path) -> None:
        train(tiny, out=tmp_path / "run")
        with pytest.raises(UserError, match=r"model.norm='rms-norm', not 'seednorm'"):
            train(tiny, out=tmp_path / "run", values={"model.norm": "seednorm"}, resume=True)
        train(tiny, out=tmp_path / "run", values={"training.checkpoint_seconds": 5}, resume=True)

    def test_a_file_or_a_strange_directory_is_refused(self, tiny: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="is a file"):
            train(tiny, out=tmp_path / "file")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("")
        with pytest.raises(UserError, match=r"thesis\.tex"):
            train(tiny, out=tmp_path / "other")

    @pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
    def test_a_damaged_checkpoint_is_named(self, tiny: dict[str, Any], tmp_path: Path, name: str) -> None:
        with pytest.raises(Interrupted):
            train(tiny, out=tmp_path / "run", stop=After(3))
        file = tmp_path / "run" / "checkpoint" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(UserError, match="cannot be read"):
            train(tiny, out=tmp_path / "run", resume=True)
        assert file.exists()

    def test_lost_metrics_are_named(self, tiny: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(Interrupted):
            train(tiny, out=tmp_path / "run", stop=After(3))
        (tmp_path / "run" / "metrics.jsonl").write_text("")
        with pytest.raises(UserError, match="damaged"):
            train(tiny, out=tmp_path / "run", resume=True)

    def test_a_full_disk_leaves_the_last_checkpoint(
        self, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from assay.training import checkpoint

        with pytest.raises(Interrupted):
            train(tiny, out=tmp_path / "run", stop=After(3))
        before = weights(tmp_path / "run")
        real = checkpoint.save_file

        def full(*arguments: Any, **options: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint, "save_file", full)
        with pytest.raises(AssayError, match="no space left"):
            train(tiny, out=tmp_path / "run", resume=True)
        assert equal(before, weights(tmp_path / "run"))
        monkeypatch.setattr(checkpoint, "save_file", real)
        train(tiny, out=tmp_path / "run", resume=True)
        train(tiny, out=tmp_path / "whole")
        assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))

    def test_between_two_renames_the_old_checkpoint_is_found(self, tiny: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(Interrupted):
            train(tiny, out=tmp_path / "run", stop=After(3))
        (tmp_path / "run" / "checkpoint").rename(tmp_path / "run" / "checkpoint.old")
        train(tiny, out=tmp_path / "run", resume=True)
        train(tiny, out=tmp_path / "whole")
        assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_run_goes_on_compiled_or_not_as_it_began(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tiny, out=tmp_path / "run", stop=After(3))
    resumed = train(tiny, out=tmp_path / "run", values={"training.compile": True}, resume=True)
    assert not resumed.compiled
