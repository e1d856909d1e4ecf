from __future__ import annotations

import json

import pytest

SET = [
    "model.depth=3",
    "model.hidden_size=32",
    "model.head_dim=8",
    "data.sequence_length=16",
    "data.batch_size=2",
    "data.eval_bytes=512",
    "training.tokens=64",
    "training.evaluations=1",
    "training.compile=false",
]


def test_a_grid_gives_a_configuration_and_its_runs_serve_again(assay, tmp_path, monkeypatch):
    from assay.analysis import roofline

    machine = roofline.Machine(1e11, ((1e6, 2e10),), layer=1e-4)
    monkeypatch.setattr(roofline, "measure_machine", lambda **options: machine)
    settings = [part for one in SET for part in ("--set", one)]
    work = ["--latency-ms", "50", "--prompt", "16", "--new", "2", "--jobs", "1", "--quiet"]
    out = tmp_path / "design"
    status, printed, _ = assay(
        "design", *work, *settings, "--count", "6", "--confirm", "1", "--memory-mb", "9", "--out", str(out)
    )
    assert status == 0
    assert "law of 6 runs" in printed
    assert "the proposal is number" in printed
    status, printed, _ = assay(
        "design", *work, "--runs", str(out / "grid"), "--json", "--out", str(tmp_path / "more")
    )
    document = json.loads(printed)
    assert status == 0
    assert document["front"][-1] == document["best"]
    assert document == json.loads((tmp_path / "more" / "design.json").read_text())
    assert (tmp_path / "more" / "design.toml").read_text() == (out / "design.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--latency-ms'"),
        (["--latency-ms", "0"], "--latency-ms and --memory-mb are above 0"),
        (["--latency-ms", "5", "--runs", "x", "--set", "model.depth=2"], "--runs brings a configuration with it"),
        (["--latency-ms", "5", "--runs", "/no/such"], "no finished run below '/no/such'"),
        (["--latency-ms", "5", "--prompt", "0"], "prompt=0"),
        (["--latency-ms", "5", "--count", "2"], "at least 6 runs"),
    ],
)
def test_bad_input_is_one_line(assay, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from assay.analysis import roofline

    monkeypatch.setattr(roofline, "measure_machine", lambda **options: roofline.Machine(1e11, ((1e6, 2e10),)))
    status, printed, errors = assay("design", *arguments)
    assert status == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert printed == ""
