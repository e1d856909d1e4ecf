"""Saved models: whole or absent, the same bits again, and readable by transformers."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from assay.data.tokenizers.bytes import Bytes
from assay.errors import AssayError, UserError
from assay.models.hugging_face import saving
from assay.models.hugging_face.loading import load
from assay.models.hugging_face.model import AssayForCausalLM
from assay.models.hugging_face.saving import save

ARMS = [
    {},
    {"head": "tied", "num_kv_heads": 1, "mixer": ["softmax*2", {"name": "gated-attention", "qkv_bias": True}]},
    {"norm": {"name": "seednorm", "num_heads": 4}, "residual": {"name": "scaled", "learned": True}},
    {"position": {"name": "rotary", "scaling": {"rope_type": "linear", "factor": 2.0}}, "placement": "mix-ln"},
    {"position": "learned", "norm": "layer-norm", "mlp": {"name": "gelu", "bias": True}, "placement": "peri-ln"},
]


class Marks:
    """A tokenizer that writes one file."""

    separator = 7

    def save(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@torch.no_grad()
@pytest.mark.parametrize("fields", ARMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_again(make_decoder, ids, tmp_path, fields, dtype):
    decoder = make_decoder(**fields)
    for parameter in decoder.parameters():
        parameter.data = parameter.to(dtype)
    save(decoder, tmp_path / "model")
    again = load(tmp_path / "model", dtype=dtype)
    assert again.config == decoder.config
    before, after = decoder.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(again(ids), decoder(ids))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype)
    assert isinstance(theirs, AssayForCausalLM)
    assert torch.equal(theirs(ids).logits, decoder(ids))


def test_the_files_are_those_of_transformers(make_decoder, tmp_path):
    decoder = make_decoder()
    save(decoder, tmp_path / "ours")
    AssayForCausalLM.from_decoder(decoder).save_pretrained(tmp_path / "theirs")
    ours, theirs = contents(tmp_path / "ours"), contents(tmp_path / "theirs")
    assert ours.keys() == theirs.keys() == {"config.json", "generation_config.json", "model.safetensors"}
    assert json.loads(ours["config.json"]) == json.loads(theirs["config.json"])
    assert json.loads(ours["generation_config.json"]) == json.loads(theirs["generation_config.json"])
    with safe_open(tmp_path / "ours" / "model.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_the_configuration_says_what_it_is(make_decoder, tmp_path):
    save(make_decoder(), tmp_path / "model", Marks())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "assay"
    assert config["architectures"] == ["AssayForCausalLM"]
    assert config["dtype"] == "float32"
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (7, 7, 7)
    assert (tmp_path / "model" / "tokenizer.json").exists()


def test_a_folder_is_all_that_generation_needs(make_decoder, tmp_path):
    tokenizer = Bytes()
    decoder = make_decoder(vocab_size=tokenizer.vocab_size)
    save(decoder, tmp_path / "model", tokenizer)
    encode = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = encode("assay", return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    text = model.generate(ids, max_new_tokens=4, do_sample=False)
    expected = decoder(ids)[0, -1].argmax()
    assert text[0, ids.shape[1]] == expected
    assert model.generation_config.eos_token_id == tokenizer.separator


def test_parents_are_made_and_nothing_else_is_left(make_decoder, tmp_path):
    save(make_decoder(), tmp_path / "a" / "b" / "model")
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["model"]


def test_an_empty_folder_is_free(make_decoder, tmp_path):
    (tmp_path / "model").mkdir()
    save(make_decoder(), tmp_path / "model")
    assert load(tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_model_saved_before_is_replaced_whole(make_decoder, tmp_path, ids):
    save(make_decoder(0), tmp_path / "model", Marks())
    newer = make_decoder(1, depth=3)
    save(newer, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model")(ids), newer(ids))
    assert not (tmp_path / "model" / "tokenizer.json").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "notes.md").write_text("mine"),
        lambda folder: (folder / "runs").mkdir(),
        lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").unlink(),
    ],
)
def test_a_folder_with_anything_else_is_refused(make_decoder, tmp_path, spoil):
    save(make_decoder(0), tmp_path / "model")
    spoil(tmp_path / "model")
    before = {file.name for file in (tmp_path / "model").iterdir()}
    with pytest.raises(UserError, match="not only a model saved by assay"):
        save(make_decoder(1), tmp_path / "model")
    assert {file.name for file in (tmp_path / "model").iterdir()} == before


def test_a_file_is_refused(make_decoder, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        save(make_decoder(), tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_the_old_model(make_decoder, tmp_path, monkeypatch, ids, error):
    old = make_decoder(0)
    save(old, tmp_path / "model")

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(saving, "save_file", fail)
    with pytest.raises(AssayError, match="no space left") as caught:
        save(make_decoder(1), tmp_path / "model")
    assert caught.value.exit_status == 1
    assert torch.equal(load(tmp_path / "model")(ids), old(ids))
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_failure_at_the_last_step_leaves_the_old_model(make_decoder, tmp_path, monkeypatch, ids):
    old = make_decoder(0)
    save(old, tmp_path / "model")
    rename = type(tmp_path).rename

    def fail(path, target):
        if path.suffix == ".tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", fail)
    with pytest.raises(AssayError, match="cannot write"):
        save(make_decoder(1), tmp_path / "model")
    assert torch.equal(load(tmp_path / "model")(ids), old(ids))
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_limit_of_the_system_on_file_size_is_reported(tmp_path):
    program = f"""
import resource
from assay.errors import AssayError
from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.saving import save
decoder = Decoder(ModelConfig.parse(dict(depth=1, vocab_size=999, max_length=8)))
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    save(decoder, {str(tmp_path / "model")!r})
except AssayError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"AssayError cannot write {str(tmp_path / 'model')!r}"), done.stderr
    assert "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []
