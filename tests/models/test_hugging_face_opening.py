"""Opening any causal language model of transformers, and saying which tensor is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from assay.errors import UserError
from assay.models import Decoder
from assay.models.hugging_face.opening import open_released
from assay.models.hugging_face.saving import save

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_weights(folder: Path, edit: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_it_computes_what_transformers_does(folder: Path) -> None:
    ids = torch.randint(0, 61, (2, 9))
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
    model = open_released(folder)
    assert not model.training
    torch.testing.assert_close(model(ids).logits, expected)


def test_a_decoder_of_assay_too(tmp_path: Path, make_decoder: Any) -> None:
    decoder: Decoder = make_decoder()
    save(decoder, tmp_path / "model")
    ids = torch.randint(0, 61, (2, 9))
    torch.testing.assert_close(open_released(tmp_path / "model")(ids).logits, decoder(ids))


def test_it_says_nothing_while_it_loads(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_released(folder)
    assert capfd.readouterr() == ("", "")


NAME = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda weights: weights.pop(NAME), f"the weights lack '{NAME}'"),
        (lambda weights: weights.update({NAME: torch.zeros(3, 16)}), f"another shape .* has '{NAME}'"),
        (lambda weights: weights.update(extra=torch.zeros(3)), "no place in the configured model for 'extra'"),
    ],
    ids=["missing", "mismatched", "unexpected"],
)
def test_weights_that_do_not_fit_are_named(folder: Path, edit: Any, reason: str) -> None:
    edit_weights(folder, edit)
    with pytest.raises(UserError, match=reason):
        open_released(folder)


def test_an_unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_nexo"}))
    with pytest.raises(UserError, match="no causal language model can be read"):
        open_released(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no 'model_type'"):
        open_released(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="only unpickling can read"):
        open_released(folder)
