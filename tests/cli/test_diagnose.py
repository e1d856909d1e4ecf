"""``assay diagnose``: what it writes, two models side by side, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
CHEAP = ("--length", "32", "--tokens", "128", "--tokenizer", "bytes", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of transformers without a tokenizer, one with a small vocabulary, and a text."""
    place = tmp_path_factory.mktemp("diagnose")
    torch.manual_seed(0)
    for name, vocabulary in (("llama", 300), ("small", 100)):
        config = transformers.LlamaConfig(**{**SIZES, "vocab_size": vocabulary}, max_position_embeddings=64)
        transformers.LlamaForCausalLM(config).save_pretrained(place / name)
    (place / "text.txt").write_text("Some words to be read, and some more of them. " * 40)
    return place


@pytest.fixture(scope="module")
def mamba(folder: Path) -> Path:
    config = transformers.MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, state_size=4)
    transformers.MambaForCausalLM(config).save_pretrained(folder / "mamba")
    return folder / "mamba"


def changed(folder: Path, tmp_path: Path, **values: float) -> Path:
    """A copy of the model in which one entry of each named tensor has a value."""
    copy = shutil.copytree(folder / "llama", tmp_path / "changed")
    weights = load_file(copy / "model.safetensors")
    for name, value in values.items():
        weights[name].view(-1)[0] = value
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_findings_and_report_are_written(assay, folder, tmp_path):
    out = tmp_path / "out"
    status, printed, err = assay(
        "diagnose", str(folder / "llama"), "--text", str(folder / "text.txt"), "--out", str(out), *CHEAP
    )
    assert (status, err) == (0, "")
    assert f"wrote {out / 'report.html'} and {out / 'findings.json'}" in printed
    document = json.loads((out / "findings.json").read_text())
    assert document["model"] == str(folder / "llama")
    assert document["about"]["domains"] == ["text.txt"]
    assert document["about"]["tokens"] == 128
    assert "flatness" not in document["measurements"]
    assert "voids" in document["measurements"]
    assert sorted(path.name for path in out.iterdir()) == ["findings.json", "report.html"]
    again = assay("diagnose", str(folder / "llama"), "--out", str(out), "--only", "weights", *CHEAP)
    assert again[0] == 0
    assert list(json.loads((out / "findings.json").read_text())["measurements"]) == ["weights"]


def test_a_model_beside_itself_has_a_ratio_of_one_everywhere(assay, folder, tmp_path):
    llama, out = str(folder / "llama"), tmp_path / "out"
    status, printed, _ = assay("diagnose", llama, llama, "--out", str(out), *CHEAP)
    assert status == 0
    document = json.loads((out / "findings.json").read_text())
    assert len(document["changes"]) == sum(len(one["scalars"]) for one in document["measurements"].values())
    assert {row["ratio"] for row in document["changes"]} == {1.0}
    assert "in the second model" not in printed


def test_weights_that_are_no_numbers_are_a_finding_not_an_error(assay, folder, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    model = changed(folder, tmp_path, **{name: float("nan")})
    status, printed, err = assay("diagnose", str(model), "--out", str(tmp_path / "out"), *CHEAP)
    assert (status, err) == (0, "")
    assert "1. divergence (weights, broken)" in printed
    document = json.loads((tmp_path / "out" / "findings.json").read_text())
    (finding,) = document["findings"]
    assert finding["where"] == [{"matrix": name, "entries": 1}]
    assert list(document["measurements"]) == ["weights"]
    assert len(document["skipped"]) > 10


def test_a_model_without_attention_is_measured_on_what_it_has(assay, mamba, tmp_path):
    status, printed, _ = assay("diagnose", str(mamba), "--out", str(tmp_path / "out"), *CHEAP)
    assert status == 0
    skipped = json.loads((tmp_path / "out" / "findings.json").read_text())["skipped"]
    reason = "the model has no softmax attention that can be listened to"
    assert {skipped[name] for name in ("attention-logits", "attention-sinks", "head-activity")} == {reason}
    assert "not measured: attention-sinks" in printed


class TestMistakes:
    """One line, status 2, and nothing is written."""

    @pytest.fixture
    def refused(self, assay, tmp_path):
        def run(*arguments):
            out = tmp_path / "out"
            status, printed, err = assay("diagnose", *map(str, arguments), "--out", str(out), "--quiet")
            assert (status, printed) == (2, "")
            assert err.startswith("error: ")
            assert err.count("\n") == 1
            assert not out.exists()
            return err

        return run

    def test_what_is_no_model(self, refused, folder, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "config.json" in refused(tmp_path / "empty", "--tokenizer", "bytes")
        assert "is a file; give a folder" in refused(folder / "text.txt", "--tokenizer", "bytes")
        assert "no such folder: 'nowhere'" in refused("nowhere", "--tokenizer", "bytes")
        (tmp_path / "config.json").write_text('{"hidden_size": 3}')
        assert "no 'model_type' in it" in refused(tmp_path, "--tokenizer", "bytes")

    def test_a_second_model_that_is_none(self, refused, folder, tmp_path):
        (tmp_path / "empty").mkdir()
        arguments = ("--tokenizer", "bytes", "--length", "32", "--only", "weights")
        assert "config.json" in refused(folder / "llama", tmp_path / "empty", *arguments)

    def test_weights_of_another_configuration(self, refused, folder, tmp_path):
        copy = shutil.copytree(folder / "llama", tmp_path / "model")
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
        assert "the weights lack 'model.layers.2." in refused(copy, "--tokenizer", "bytes")
        (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
        assert "no place in the configured model for 'model.layers.1." in refused(copy, "--tokenizer", "bytes")
        (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
        assert str(copy) in refused(copy, "--tokenizer", "bytes")
        (copy / "model.safetensors").write_bytes(b"not weights")
        assert "model.safetensors" in refused(copy, "--tokenizer", "bytes")

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--only", "attention-sink"], "error: unknown diagnostic 'attention-sink'; nearest: attention-sinks"),
            (["--only", ","], "error: no diagnostic is named; known: activation-sparsity, "),
            (["--tokens", "0"], "tokens=0: at least one token has to be read"),
            (["--tokens", "lots"], "'lots'"),
            (["--length", "65"], "length=65: the model takes at most 64 tokens at once"),
            (["--length", "1"], "length=1: a window has at least 2 tokens"),
            (["--text", "TEXT", "--corpus", "python-stdlib"], "give a text or a corpus, not both"),
            (["--text", "missing.txt"], "missing.txt"),
            (["--corpus", "python-stdlb"], "'python-stdlb'; nearest: python-stdlib"),
            (["--tokenizer", "byte"], "'byte'; nearest: bytes"),
            (["--tokenizer", "hf:nowhere"], "there is no such folder"),
            (["--lenght", "3"], "--length"),
        ],
    )
    def test_options(self, refused, folder, arguments, reason):
        given = [str(folder / "text.txt") if word == "TEXT" else word for word in arguments]
        tokenizer = [] if "--tokenizer" in given else ["--tokenizer", "bytes"]
        assert reason in refused(folder / "llama", *given, *tokenizer)

    def test_a_text_shorter_than_a_window(self, refused, folder, tmp_path):
        (tmp_path / "short.txt").write_text("few words")
        said = refused(folder / "llama", "--text", tmp_path / "short.txt", "--tokenizer", "bytes")
        assert said == "error: short.txt: 9 tokens, fewer than one window of 64; give a longer text\n"

    def test_a_text_that_is_none(self, refused, folder, tmp_path):
        (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe" * 50)
        said = refused(folder / "llama", "--text", tmp_path / "image.png", "--tokenizer", "bytes")
        assert "image.png' is not UTF-8 text" in said

    def test_no_tokenizer(self, refused, folder):
        assert "give the model's tokenizer: bytes, or hf:FOLDER" in refused(folder / "llama")

    def test_a_tokenizer_of_another_model(self, refused, folder):
        said = refused(folder / "small", "--tokenizer", "bytes", "--length", "32", "--text", folder / "text.txt")
        assert "the tokenizer 'bytes' gives ids up to 256, and the model has only 100" in said

    def test_a_diagnostic_that_the_model_has_nothing_for(self, refused, mamba):
        said = refused(mamba, "--only", "attention-sinks", *CHEAP)
        reason = "diagnostic 'attention-sinks': the model has no softmax attention that can be listened to"
        assert said == f"error: {mamba}: {reason}\n"

    def test_a_folder_that_is_another_thing(self, assay, folder, tmp_path):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "thesis.tex").write_text("words")
        for out, reason in (
            (tmp_path / "notes", "is not empty and holds no findings.json; give another folder"),
            (tmp_path / "notes" / "thesis.tex", "is a file; give a folder for findings.json and report.html"),
        ):
            status, printed, err = assay("diagnose", str(folder / "llama"), "--out", str(out), *CHEAP)
            assert (status, printed) == (2, "")
            assert err == f"error: '{out}' {reason}\n"
        assert (tmp_path / "notes" / "thesis.tex").read_text() == "words"
        assert len(list((tmp_path / "notes").iterdir())) == 1
