"""train, export, compare and report from the command line, as a user would go through them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import assay


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    file = tmp_path_factory.mktemp("config") / "run.toml"
    file.write_text(
        f"""
        [model]
        depth = 2
        hidden_size = 32
        num_heads = 2
        [data]
        corpus = "text:{corpus}"
        sequence_length = 32
        batch_size = 4
        eval_bytes = 2048
        [training]
        tokens = 1536
        evaluations = 2
        """
    )
    return file


def test_train_then_export_then_transformers(config: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = run("train", config, "--set", "model.norm=seednorm", "--out", tmp_path / "run", "--quiet")
    assert trained.returncode == 0, trained.stderr
    assert "bits per byte after 1,536 tokens" in trained.stdout
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["norm"] == "seednorm"

    exported = run("export", tmp_path / "run", "--out", tmp_path / "model")
    assert exported.returncode == 0, exported.stderr
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "model").encode("line 3 of file")])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits
    ours = assay.load(tmp_path / "run")(ids)
    assert torch.equal(theirs, ours)
    assert torch.equal(assay.load(tmp_path / "model")(ids), ours)


def test_compare_then_report(config: Path, corpus: Path, tmp_path: Path) -> None:
    sets = ["model.depth=2", "model.hidden_size=32", f"data.corpus=text:{corpus}", "data.sequence_length=32"]
    options = [option for value in sets for option in ("--set", value)]
    out = tmp_path / "out"
    arms = "baseline,seednorm,peri-ln+gated-attention"
    first = run("compare", "--arms", arms, "--seeds", "2", "--tokens", "2k", *options, "--out", out, "--quiet")
    assert first.returncode == 0, first.stderr
    result = assay.Comparison.load(out)
    assert [arm.name for arm in result.arms] == arms.split(",")
    assert result.command.startswith("assay compare --arms")
    for arm in result.arms[1:]:
        assert arm.compared.verdict in first.stdout
    page = (out / "report.html").read_text()
    assert "peri-ln+gated-attention" in page

    (out / "report.html").unlink()
    again = run("report", out)
    assert again.returncode == 0, again.stderr
    assert (out / "report.html").read_text() == page
    assert again.stdout == first.stdout


def test_a_damaged_comparison_is_named(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text('{"format": 1')
    result = run("report", tmp_path)
    assert result.returncode == 2
    assert "comparison.json" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_model_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    result = run("export", tmp_path, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert str(tmp_path) in result.stderr


def test_an_export_does_not_overwrite_something_else(config: Path, tmp_path: Path) -> None:
    run("train", config, "--out", tmp_path / "run", "--quiet")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("words")
    result = run("export", tmp_path / "run", "--out", tmp_path / "thesis")
    assert result.returncode == 2
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "words"
