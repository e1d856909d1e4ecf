"""``assay apply`` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import assay


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_a_run_without_its_norms(corpus: Path, tmp_path: Path) -> None:
    config = {
        "model": {"depth": 1, "hidden_size": 16, "num_heads": 2},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 16, "batch_size": 2, "eval_bytes": 1024},
        "training": {"tokens": 320, "evaluations": 1},
    }
    assay.train(config, out=tmp_path / "run")
    settings = ["--set", "start=1", "--set", "gaps=[1, 1, 1]", "--set", "tuning.steps=6"]
    done = run("apply", "layernorm-removal", tmp_path / "run", *settings, "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    measured, written = done.stdout.splitlines()
    assert measured.endswith(" after")
    assert written == f"wrote {tmp_path / 'model'}"
    assert "0 of 4 norms left" in done.stderr
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model"]["norm"] == "none"

    quiet = run("apply", "layernorm-removal", tmp_path / "run", *settings, "--out", tmp_path / "again", "--quiet")
    assert (quiet.stdout.splitlines()[0], quiet.stderr) == (measured, "")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["layernorm-remval", "x"], "unknown technique 'layernorm-remval'; nearest: layernorm-removal"),
        (["layernorm-removal", "/no/such", "--corpus", "python-stdlib"], "no such folder: '/no/such'"),
        (["layernorm-removal", "/no/such", "--set", "out=3"], "'out' is no option of a transform"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], reason: str, tmp_path: Path) -> None:
    done = run("apply", *arguments, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr
    assert list(tmp_path.iterdir()) == []
