"""Applying a transform by name, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import assay
from assay.data.tokenizers.bytes import Bytes
from assay.errors import AssayError, UserError

QUICK = {"start": 1, "gaps": (1, 1, 1), "tuning": {"steps": 10, "batch_size": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared_home: Path, corpus: Path) -> Path:
    """A run of a small model with LayerNorm."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = {
        "model": {"depth": 2, "hidden_size": 32, "num_heads": 2, "norm": "layer-norm"},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
        "training": {"tokens": 1536, "evaluations": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSAY_HOME", str(shared_home))
        assay.train(config, out=folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "notes.txt"
    file.write_text("\n\n".join(f"note {i}: {'one two three '[: i % 13]}" for i in range(300)))
    return file


def state(model: assay.Decoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def test_a_run_becomes_a_folder_that_transformers_opens(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    out = tmp_path / "deep" / "out"
    applied = assay.apply("layernorm-removal", run, out=out, **QUICK)
    ids = torch.tensor([AutoTokenizer.from_pretrained(out).encode("line 3 of file 5")])
    assert ids.tolist() == [list(b"line 3 of file 5")]
    expected = applied.model(ids)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(ids).logits, expected)
    assert torch.equal(assay.load(out)(ids), expected)
    assert applied.model.config.norm.name == "none"
    assert applied.before is not None
    assert applied.after is not None
    assert applied.before != applied.after
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_from_a_decoder_a_folder_and_a_run_comes_the_same(run: Path, text: Path, tmp_path: Path) -> None:
    decoder = assay.load(run)
    given = state(decoder)
    assay.export(run, tmp_path / "folder")
    results = [
        assay.apply("layernorm-removal", run, text=text, **QUICK),
        assay.apply("layernorm-removal", tmp_path / "folder", text=text, **QUICK),
        assay.apply("layernorm-removal", decoder, text=text, tokenizer="bytes", **QUICK),
        assay.apply(
            "layernorm-removal", decoder, corpus={"name": "text", "path": str(text)}, tokenizer=Bytes(), **QUICK
        ),
    ]
    for other in results[1:]:
        assert (other.before, other.after) == (results[0].before, results[0].after)
        for name, tensor in results[0].model.state_dict().items():
            assert torch.equal(other.model.state_dict()[name], tensor), name
    for name, tensor in state(decoder).items():
        assert torch.equal(tensor, given[name]), name


def test_options_may_be_dotted(run: Path) -> None:
    dotted = {"start": 1, "gaps": (1, 1, 1), "tuning.steps": 10, "tuning.batch_size": 2}
    first, second = (assay.apply("layernorm-removal", run, **options) for options in (QUICK, dotted))
    assert first.after == second.after


def test_nothing_is_left_behind_when_it_fails(run: Path, tmp_path: Path) -> None:
    tuning = {**QUICK["tuning"], "lr": 1e30}
    with pytest.raises(AssayError, match="no longer finite"):
        assay.apply("layernorm-removal", run, out=tmp_path / "out", **{**QUICK, "tuning": tuning})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("technique", "given", "reason"),
    [
        ("layernorm-remval", {}, "unknown technique 'layernorm-remval'; nearest: layernorm-removal"),
        ("seednorm", {}, "'seednorm' changes how a model is trained, not a trained model"),
        ("layernorm-removal", {"strat": 3}, "transform 'layernorm-removal' has no option 'strat'; nearest: start"),
        ("layernorm-removal", {"tuning": {"steps": 0}}, "steps=0: input should be greater than 0"),
        ("layernorm-removal", {"text": "a.txt", "corpus": "python-stdlib"}, "a text or a corpus, not both"),
        ("layernorm-removal", {"text": "/no/such.txt"}, "corpus 'text:/no/such.txt': there is no such file"),
        ("layernorm-removal", {"tokenizer": "hf:/no/such"}, "there is no such folder"),
    ],
)
def test_mistakes(run: Path, technique: str, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        assay.apply(technique, run, **{**QUICK, **given})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_folder_to_write_has_to_be_empty_and_is_looked_at_first(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(UserError, match="is not empty; give another folder"):
        assay.apply("layernorm-removal", "/no/such", out=tmp_path)
    with pytest.raises(UserError, match="is a file; give a folder"):
        assay.apply("layernorm-removal", "/no/such", out=tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_model_without_text_or_tokenizer(run: Path, text: Path, tmp_path: Path) -> None:
    assay.export(run, tmp_path / "folder")
    with pytest.raises(UserError, match="'layernorm-removal' reads text: give a file or a folder with --text"):
        assay.apply("layernorm-removal", tmp_path / "folder", **QUICK)
    for file in (tmp_path / "folder").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"cannot be opened.*give the model's tokenizer: bytes, or hf:FOLDER"):
        assay.apply("layernorm-removal", tmp_path / "folder", text=text, **QUICK)
    with pytest.raises(UserError, match="a decoder has no tokenizer of its own"):
        assay.apply("layernorm-removal", assay.load(run), text=text, **QUICK)


def test_a_tokenizer_with_more_ids_than_the_model(text: Path) -> None:
    sizes = {"depth": 1, "hidden_size": 16, "num_heads": 2, "vocab_size": 128, "max_length": 8}
    model = assay.Decoder(assay.ModelConfig.parse(sizes))
    with pytest.raises(
        UserError, match=r"the tokenizer 'bytes' gives ids up to 256, and the model has only 128: it is"
    ):
        assay.apply("layernorm-removal", model, text=text, tokenizer="bytes", **QUICK)


def test_a_text_that_is_too_short(run: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"tokens to train on, fewer than one sequence of 33"):
        assay.apply("layernorm-removal", run, text=tmp_path / "short.txt", **QUICK)
