"""Folders of transformers as decoders: the same logits, and one readable line for what cannot be read."""

import json

import huggingface_hub
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from assay.errors import UserError
from assay.models.hugging_face.families import FAMILIES
from assay.models.hugging_face.loading import load

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GPT2 = {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "eos_token_id": 2}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama-tied-llama3": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "llama-biased-wide-heads": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=16),
    "llama-linear": lambda: LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    ),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2-tied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=24),
    "qwen3-biased": lambda: Qwen3Config(**SIZES, head_dim=8, attention_bias=True, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(**GPT2),
    "gpt2-exact-gelu-untied": lambda: GPT2Config(
        **GPT2, activation_function="gelu", n_inner=40, tie_word_embeddings=False
    ),
}


@pytest.fixture(scope="session")
def network(randomize):
    def make(name):
        model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
        randomize(model)
        return model

    return make


@pytest.fixture
def folder(tmp_path, network):
    """A small llama, saved by transformers."""
    network("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, remove=(), **values):
    file = folder / "config.json"
    data = {k: v for k, v in json.loads(file.read_text()).items() if k not in remove} | values
    file.write_text(json.dumps(data))


def edit_weights(folder, edit):
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def message(*arguments, **options):
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name, tmp_path, network):
    model = network(name)
    model.save_pretrained(tmp_path)
    ids = torch.randint(0, 61, (2, 64), generator=torch.Generator().manual_seed(0))
    theirs = model(ids).logits
    assert theirs.std() > 0.3
    decoder = load(tmp_path)
    assert not decoder.training
    torch.testing.assert_close(decoder(ids), theirs, atol=1e-4, rtol=0)


def test_every_family_is_tested():
    assert {CONFIGS[name]().model_type for name in CONFIGS} == FAMILIES.keys() - {"assay"}


def test_the_configuration_is_the_least_that_says_it(tmp_path, network):
    network("llama-tied-llama3").save_pretrained(tmp_path)
    dumped = load(tmp_path).config.dump()
    assert dumped["head"] == "tied"
    assert dumped["mixer"] == "softmax"
    assert dumped["mlp"] == "swiglu"
    assert dumped["norm"] == {"name": "rms-norm", "eps": 1e-6}
    assert dumped["position"]["theta"] == 500000.0
    assert (dumped["depth"], dumped["num_heads"], dumped["num_kv_heads"], dumped["head_dim"]) == (3, 4, 2, 8)
    assert (dumped["max_length"], dumped["vocab_size"], dumped["intermediate_size"]) == (64, 61, 48)


def test_sharded_weights_are_the_same_weights(folder, network):
    whole = load(folder).state_dict()
    network("llama").save_pretrained(folder / "sharded", max_shard_size="20KB")
    assert len(list((folder / "sharded").glob("model-*.safetensors"))) > 2
    parts = load(folder / "sharded").state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_names_of_old_checkpoints_are_understood(folder):
    expected = load(folder).state_dict()
    edit_weights(folder, lambda state: state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    edit_config(
        folder,
        remove=("rope_parameters", "head_dim"),
        rope_theta=500000.0,
        rope_scaling={"type": "linear", "factor": 2.0},
    )
    decoder = load(folder)
    assert decoder.config.position.options == {
        "theta": 500000.0,
        "scaling": {"type": "linear", "factor": 2.0, "rope_type": "linear"},
    }
    assert all(torch.equal(tensor, expected[name]) for name, tensor in decoder.state_dict().items())


def test_gpt2_as_it_was_released_has_no_prefix_and_carries_its_masks(tmp_path, network):
    network("gpt2").save_pretrained(tmp_path)
    expected = load(tmp_path).state_dict()

    def as_released(state):
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
        return state | {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.tensor(-1e4)}

    edit_weights(tmp_path, as_released)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(tmp_path).state_dict().items())


def test_a_tied_head_that_was_saved_too_is_left_alone(tmp_path, network):
    network("qwen2-tied").save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda state: state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()})
    assert "head.projection.weight" not in load(tmp_path).state_dict()


@torch.no_grad()
def test_precision_is_that_asked_for_except_in_the_rotation(folder, ids):
    decoder = load(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    assert decoder.position.frequencies.dtype == torch.float32
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(ids).logits
    torch.testing.assert_close(decoder(ids), theirs, atol=5e-2, rtol=0)


def test_weights_outlive_their_file(folder):
    decoder = load(folder)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    (folder / "model.safetensors").write_bytes(b"")
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())


def test_parameters_can_be_trained(folder, ids):
    decoder = load(folder)
    decoder(ids).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())


def test_no_such_folder(tmp_path):
    assert message(tmp_path / "absent") == f"no such folder: {str(tmp_path / 'absent')!r}"
    assert message("absent") == "no such folder: 'absent'"


def test_a_file_is_not_a_folder(folder):
    assert "is a file" in message(folder / "config.json")


def test_a_folder_without_configuration(tmp_path):
    assert "has no config.json" in message(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff", "[" * 100_000])
def test_a_corrupt_configuration(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "config.json" in message(folder)


def test_a_configuration_with_values_that_make_no_sense(folder):
    edit_config(folder, num_attention_heads="many")
    assert "num_attention_heads" in message(folder)


def test_an_unknown_family_names_the_known_ones(folder):
    edit_config(folder, model_type="mamba")
    assert "'mamba'" in (line := message(folder))
    assert all(family in line for family in FAMILIES)
    edit_config(folder, remove=("model_type",))
    assert "model_type" in message(folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu' or 'swish'"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window=16"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "scaling rules linear and llama3, not 'yarn'",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "config.json"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
    ],
)
def test_what_a_decoder_does_not_have_is_refused(folder, values, named):
    edit_config(folder, **values)
    assert named in message(folder)


@pytest.mark.parametrize("option", ["scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_unusual_options_of_gpt2_are_refused(tmp_path, option, network):
    network("gpt2").save_pretrained(tmp_path)
    edit_config(tmp_path, **{option: True})
    assert f"{option}=True" in message(tmp_path)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "has no weights" in message(folder)


def test_pickled_weights_are_refused_unread(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "'pytorch_model.bin'" in (line := message(folder))
    assert "safetensors" in line


def test_missing_weights_are_counted(folder):
    edit_weights(folder, lambda state: {n: t for n, t in state.items() if "layers.1.mlp" not in n})
    assert message(folder).endswith("the weights lack 'model.layers.1.mlp.gate_proj.weight' (and 2 more)")


def test_a_missing_head_is_not_taken_for_a_tied_one(folder):
    edit_weights(folder, lambda state: {n: t for n, t in state.items() if n != "lm_head.weight"})
    assert message(folder).endswith("the weights lack 'lm_head.weight'")


def test_unexpected_weights_are_named(folder):
    edit_weights(folder, lambda state: state | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})
    assert "'model.layers.0.self_attn.q_proj.bias' has no place in a llama" in message(folder)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(61, 31), torch.zeros(61), torch.tensor(0.0), torch.zeros(61, 32, dtype=torch.int8)]
)
def test_weights_of_a_wrong_shape_or_kind_are_named(folder, wrong):
    edit_weights(folder, lambda state: state | {"lm_head.weight": wrong})
    line = message(folder)
    assert "'lm_head.weight'" in line
    assert str(tuple(wrong.shape)) in line
    assert "(61, 32)" in line


def test_a_fused_weight_of_a_wrong_shape_is_named(tmp_path, network):
    network("gpt2").save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda state: state | {"transformer.h.0.attn.c_attn.weight": torch.zeros(32, 95)})
    assert "c_attn.weight' is (32, 95)" in message(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no tensors here", b"\xff" * 64])
def test_damaged_weights(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "damaged" in message(folder)


def test_truncated_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    assert "damaged" in message(folder)


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ("{", "not valid JSON"),
        ("{}", "weight_map"),
        ('{"weight_map": {"a": 1}}', "weight_map"),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "model-00001-of-00002.safetensors"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "'../model.safetensors'"),
    ],
)
def test_a_wrong_index(folder, index, named):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    assert named in message(folder)


def test_an_index_that_promises_what_its_file_lacks(folder):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    places = dict.fromkeys([*load_file(folder / "part.safetensors"), "model.ghost"], "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert "'model.ghost'" in message(folder)


class TestGGUF:
    def test_no_such_file(self, folder):
        assert "no such file" in message(folder, gguf_file="model.gguf")
        assert "no such folder" in message(folder / "model.gguf")

    def test_a_file_and_a_name_contradict_each_other(self, folder):
        (folder / "model.gguf").write_bytes(b"GGUF")
        assert "by itself" in message(folder / "model.gguf", gguf_file="model.gguf")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"GGUF", b"GGUF" + bytes(40)])
    def test_damaged(self, folder, content):
        (folder / "model.gguf").write_bytes(content)
        assert "model.gguf" in message(folder / "model.gguf")

    def test_an_unknown_family(self, folder):
        writer = GGUFWriter(folder / "model.gguf", "falcon")
        writer.add_context_length(8)
        writer.add_token_list(["a"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        assert "model_type 'falcon' is not supported" in message(folder, gguf_file="model.gguf")

    def test_the_package_is_optional(self, folder, monkeypatch):
        (folder / "model.gguf").write_bytes(b"GGUF")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert "pip install 'assay[gguf]'" in message(folder, gguf_file="model.gguf")


class TestHub:
    def test_a_name_is_fetched_without_pickles_or_code(self, folder, monkeypatch, ids):
        asked = {}

        def fetch(name, allow_patterns):
            asked[name] = allow_patterns
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        assert torch.equal(load("org/name")(ids), load(folder)(ids))
        patterns = asked["org/name"]
        files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "merges.txt"]
        chosen = huggingface_hub.utils.filter_repo_objects(
            [*files, "pytorch_model.bin", "modeling.py", "original/model.safetensors"], allow_patterns=patterns
        )
        assert list(chosen) == files

    def test_only_the_chosen_gguf_file_is_fetched(self, folder, monkeypatch):
        asked = []
        monkeypatch.setattr(
            huggingface_hub,
            "snapshot_download",
            lambda name, allow_patterns: asked.extend(allow_patterns) or str(folder),
        )
        message("org/name", gguf_file="a.gguf")
        assert "a.gguf" in asked
        assert not any("safetensors" in pattern for pattern in asked)

    def test_what_the_hub_does_not_give_is_one_line(self, monkeypatch):
        def fetch(name, allow_patterns):
            raise OSError("Repository Not Found\nfor url: https://example.org")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        line = message("org/name")
        assert "'org/name'" in line
        assert "Repository Not Found" in line

    def test_a_local_folder_comes_first(self, tmp_path, monkeypatch, ids, network):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
        network("llama").save_pretrained("org/name")
        assert load("org/name")(ids).shape == (3, 20, 61)
