"""Diagnostics during training: what is logged, what it must not touch, and where it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from assay.comparison.compare import compare
from assay.config import flatten
from assay.data.windows import prepare
from assay.diagnostics.subject import Subject
from assay.errors import UserError
from assay.reports import write_reports
from assay.training.config import RunConfig
from assay.training.diagnose import carry_out
from assay.training.export import load
from assay.training.loop import train
from assay.training.recording import Recorder
from assay.training.run_directory import RunDirectory

NAMES = ["attention-logits", "residual-norms"]


def rows(directory: Path) -> dict[int, dict[str, float]]:
    return {row["step"]: row["diagnostics"] for row in RunDirectory(directory).metrics() if "diagnostics" in row}


def with_diagnostics(tiny: dict[str, Any], **changes: Any) -> RunConfig:
    training = {**tiny["training"], "diagnostics": NAMES, "diagnostics_every": 5, **changes}
    return RunConfig.parse({**tiny, "training": training})


def test_they_are_logged_now_and_then_and_at_the_end(tiny: dict[str, Any], tmp_path: Path) -> None:
    """After steps 5, 10 and 12; the last are those of the model that was saved."""
    config = with_diagnostics(tiny)
    train(config, out=tmp_path / "run")
    found = rows(tmp_path / "run")
    assert list(found) == [5, 10, 12]
    assert all(set(row) == set(found[12]) for row in found.values())
    assert {"attention-logits.largest_logit", "attention-logits.entropy", "residual-norms.growth"} <= set(found[12])
    recorder = Recorder(NAMES, prepare(config.data), config.data.sequence_length)
    assert recorder(load(tmp_path / "run")) == pytest.approx(found[12], rel=1e-4)


def test_the_run_is_the_same_to_the_bit(tiny: dict[str, Any], tmp_path: Path) -> None:
    plain = train(RunConfig.parse(tiny), out=tmp_path / "plain")
    watched = train(with_diagnostics(tiny, diagnostics=[*NAMES, "gradients", "flatness"]), out=tmp_path / "watched")
    one, two = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("plain", "watched"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert watched.bits_per_byte == plain.bits_per_byte
    assert rows(tmp_path / "plain") == {}
    assert {"gradients.norm", "flatness.sharpness"} <= set(rows(tmp_path / "watched")[12])


def test_the_text_is_the_start_of_the_validation_text(tiny_config: RunConfig) -> None:
    data = prepare(tiny_config.data)
    windows = Recorder(NAMES, data, 32).windows
    text = [int(id) for id in data.validation[:132] if id != data.separator]
    assert windows.ids.shape == (4, 32)
    assert windows.ids[:, 0].tolist() == [data.separator] * 4
    assert windows.ids[0, 1:].tolist() == text[:31]
    assert set(windows.ids[:, 1:].flatten().tolist()) <= set(text)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_goes_on_in_its_mode(tiny_config: RunConfig, tmp_path: Path, training: bool) -> None:
    train(tiny_config, out=tmp_path / "run")
    model = load(tmp_path / "run").train(training)
    recorder = Recorder(["weights", "layer-updates"], prepare(tiny_config.data), 32)
    found = recorder(model)
    results, skipped = carry_out(Subject(load(tmp_path / "run")), recorder.windows, recorder.names)
    assert found == {f"weights.{name}": value for name, value in results["weights"].scalars.items()}
    assert list(skipped) == ["layer-updates"]  # windows of 32 tokens are too short for it
    assert model.training is training


def test_an_unknown_name_is_refused_before_anything_is_done(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(tiny, out=tmp_path / "run", values={"training.diagnostics": ["atention-logits"]})
    assert "unknown diagnostic 'atention-logits'; nearest: attention-logits" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_comparison_shows_them_by_arm(tiny: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("assay.comparison.workers.available_cores", lambda: 1)
    result = compare(
        arms=["baseline", "seednorm"],
        seeds=1,
        tokens=12 * 4 * 32,
        jobs=1,
        out=tmp_path / "out",
        values={
            **flatten({"model": tiny["model"], "data": tiny["data"]}),
            "training.evaluations": 2,
            "training.diagnostics": ["attention-logits"],
            "training.diagnostics_every": 4,
        },
    )
    for arm in result.arms:
        points = arm.runs[0].diagnostics["attention-logits.largest_logit"]
        assert [point.tokens for point in points] == [512, 1024, 1536]
    write_reports(result, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Diagnostics over training" in page
    assert "attention-logits.largest_logit" in page
