"""Diagnosing a model: what is read, what is measured on it, and what is left alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from assay.data.tokenizers.bytes import Bytes
from assay.data.windows import prepare
from assay.diagnostics import diagnostics
from assay.diagnostics.diagnosis import Diagnosis
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.training.config import RunConfig
from assay.training.diagnose import diagnose
from assay.training.loop import train

TEXT = "The quick brown fox jumps over the lazy dog; " * 20


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=64, **options)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "fox.txt"
    path.write_text(TEXT)
    return path


def short(model: Any, text: Any, **options: Any) -> Diagnosis:
    return diagnose(model, text=text, tokenizer="bytes", **{"tokens": 200, "length": 40, **options})


def test_windows_are_of_the_text_behind_the_separator(text: Path) -> None:
    """Five windows of 40: a separator and 39 bytes each, spread over the text; the loss is that of transformers."""
    model = llama()
    found = short(model, text, only=["output-logits"])
    content = text.read_bytes()
    gap = (len(content) - 200) // 5
    starts = [number * (40 + gap) for number in range(5)]
    separator = Bytes().separator
    ids = torch.tensor([[separator, *content[start : start + 39]] for start in starts])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
    assert found.scalars()["output-logits.loss"] == pytest.approx(expected, rel=1e-5)
    assert found.about == {
        "architecture": "LlamaForCausalLM",
        "layers": 2,
        "hidden_size": 32,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": 200,
        "window": 40,
        "domains": ["fox.txt"],
    }


def test_all_together_find_what_each_finds_alone_and_leave_the_model_as_it_was(text: Path) -> None:
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = short(model, text, gradients=True)
    assert list(whole.results) == list(diagnostics)
    assert not whole.skipped
    for name in ("attention-sinks", "depth-use", "layer-skipping", "gradients", "weight-spectra"):
        alone = short(model, text, only=[name])
        assert list(alone.results) == [name]
        assert alone.results[name].scalars == pytest.approx(whole.results[name].scalars, rel=1e-4, abs=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_are_for_those_who_ask(text: Path) -> None:
    costly = {name for name in diagnostics if diagnostics[name].cost == "gradients"}
    assert costly == {"flatness", "gradients"}
    assert set(short(llama(), text).results) == set(diagnostics) - costly


def test_each_file_is_a_domain(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "fox.txt"
    other.parent.mkdir()
    other.write_text("0123456789" * 30)
    assert short(llama(), [text, other], only=["voids"]).about["domains"] == [str(text), str(other)]
    other = other.rename(other.with_name("digits.txt"))
    found = short(llama(), [text, other], only=["head-activity"])
    assert found.about["domains"] == ["fox.txt", "digits.txt"]
    assert "switching_heads" in found.results["head-activity"].scalars


def test_a_run_is_read_on_its_own_validation_text(tiny_config: RunConfig, tmp_path: Path) -> None:
    train(tiny_config, out=tmp_path / "run")
    found = diagnose(tmp_path / "run", tokens=128, length=32, only=["output-logits", "attention-sinks"])
    assert found.model == str(tmp_path / "run")
    assert found.about["domains"] == [prepare(tiny_config.data).corpus]
    assert list(found.results) == ["output-logits", "attention-sinks"]


def test_a_model_without_a_text_reads_the_interpreters_own() -> None:
    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 2, "vocab_size": 257, "max_length": 32}
    decoder = Decoder(ModelConfig.parse(sizes))
    found = diagnose(decoder, tokenizer="bytes", tokens=128, length=32, only=["residual-norms"])
    assert found.about["domains"] == ["code", "prose"]
    assert found.about["tokens"] == 128


def test_weights_that_are_no_numbers_are_all_that_is_told(text: Path, tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = math.nan
    found = short(model, text)
    assert list(found.results) == ["weights"]
    (finding,) = found.findings
    assert (finding.symptom, finding.excess) == ("divergence", math.inf)
    assert set(found.skipped) == {name for name in diagnostics if diagnostics[name].cost != "gradients"} - {"weights"}
    assert set(found.skipped.values()) == {"'model.layers.1.mlp.up_proj.weight' has weights that are not finite"}
    document = json.loads(found.save(tmp_path).read_text())
    assert document["findings"][0]["excess"] is None
    assert document["skipped"] == found.skipped


def test_what_is_broken_worst_comes_first(text: Path) -> None:
    """Heads without values, and queries that are slightly too long."""
    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[:8] = 0
            layer.self_attn.q_proj.weight *= 30
            layer.self_attn.k_proj.weight *= 300
    findings = short(model, text).findings
    assert findings[0].symptom == "dead-head"
    assert [finding.excess for finding in findings] == sorted((f.excess for f in findings), reverse=True)


def test_states_that_overflow_are_found_and_stop_nothing(text: Path, tmp_path: Path) -> None:
    """Finite weights whose products are not."""
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 1e30
        model.model.layers[0].mlp.down_proj.weight *= 1e30
    found = short(model, text, gradients=True)
    assert {"residual-growth", "logit-growth", "massive-activation"} <= {one.symptom for one in found.findings}
    assert found.findings[0].excess == math.inf
    assert found.skipped["layer-updates"] == "the states after layer 0 are not finite"
    assert found.skipped["flatness"].endswith("it must be a finite number")
    assert json.loads(found.save(tmp_path).read_text())["findings"][0]["excess"] is None


def test_windows_too_short_for_one_diagnostic_leave_the_others(text: Path) -> None:
    found = short(llama(), text, length=16)
    reason = "windows of 16 tokens are too short; a map of each token needs 34"
    assert found.skipped == {"layer-updates": reason}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"only": []}, "no diagnostic is named; known: activation-sparsity, "),
        ({"only": ["void"]}, "unknown diagnostic 'void'; nearest: voids"),
        ({"tokens": "many"}, "'many'"),
        ({"length": 1}, "length=1: a window has at least 2 tokens"),
        ({"length": 65}, "length=65: the model takes at most 64 tokens at once"),
        ({"corpus": "python-stdlib"}, "give a text or a corpus, not both"),
    ],
)
def test_mistakes(text: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        short(llama(), text, **{"length": 16, "only": ["weights"], **options})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_needs_a_tokenizer(text: Path) -> None:
    with pytest.raises(UserError, match="a model has no tokenizer of its own; give one, such as tokenizer='bytes'"):
        diagnose(llama(), text=text)
