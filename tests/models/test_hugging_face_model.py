"""A decoder behind transformers' interface: masks, caches, generation, losses, and its own way of loading."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig

from assay.errors import UserError
from assay.models.hugging_face.config import AssayConfig
from assay.models.hugging_face.loading import load
from assay.models.hugging_face.model import AssayForCausalLM
from assay.models.hugging_face.saving import save

ARMS = {
    "default": {},
    "grouped-gated-tied": {
        "num_kv_heads": 2,
        "mixer": {"name": "gated-attention", "qk_norm": True},
        "head": "tied",
        "norm": "seednorm",
    },
    "learned-positions-peri": {
        "position": "learned",
        "norm": "layer-norm",
        "placement": {"name": "peri-ln", "embedding_norm": True},
        "mlp": {"name": "gelu", "bias": True},
    },
    "mixed": {
        "mixer": ["softmax", "gated-attention"],
        "placement": {"name": "mix-ln", "post_share": 0.5},
        "residual": {"name": "scaled", "learned": True},
        "position": "none",
    },
    "attentions": {
        "depth": 3,
        "num_kv_heads": 2,
        "mixer": ["relu-attention", "affine-scaled-attention", {"name": "ls-attention", "window": 3}],
    },
}
WHOLE = torch.ones(3, 8, dtype=torch.long)
GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(params=ARMS, scope="module")
def model(request, make_decoder):
    return AssayForCausalLM.from_decoder(make_decoder(**ARMS[request.param]))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_is_the_decoder_itself(make_decoder, ids):
    decoder = make_decoder()
    model = AssayForCausalLM.from_decoder(decoder)
    assert model.decoder is decoder
    assert torch.equal(model(ids, use_cache=False).logits, decoder(ids))


@torch.no_grad()
def test_pieces_through_a_cache_are_the_whole(model, ids):
    whole = model(ids, use_cache=False)
    assert whole.past_key_values is None
    cache, pieces = DynamicCache(), []
    for piece in ids.split([7, 1, 1, 8, 3], dim=1):
        pieces.append(model(piece, past_key_values=cache).logits)
    close(torch.cat(pieces, dim=1), whole.logits)
    assert cache.get_seq_length() == ids.shape[1]


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_row(model, ids, side):
    lengths = [20, 13, 6]
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, slice(-length, None) if side == "left" else slice(length)] = 1
    padded = model(ids, attention_mask=mask).logits
    assert padded.isfinite().all()
    for row in range(3):
        alone = model(ids[row, mask[row].bool()][None]).logits[0]
        close(padded[row, mask[row].bool()], alone)


@torch.no_grad()
def test_padding_leaves_no_query_without_a_key(make_decoder, ids):
    model = AssayForCausalLM.from_decoder(make_decoder())
    seen = []
    model.decoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2].mask))
    mask = torch.ones_like(ids)
    mask[0, :15] = 0
    model(ids, attention_mask=mask)
    assert seen[0].shape == (3, 1, 20, 20)
    assert seen[0].any(-1).all()
    assert not seen[0].triu(1).any()
    assert not seen[0][0, 0, 15:, :15].any()


@torch.no_grad()
def test_a_left_padded_batch_goes_on_through_a_cache(model, ids):
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    whole = model(ids, attention_mask=mask).logits
    first = model(ids[:, :11], attention_mask=mask[:, :11], use_cache=True)
    rest = model(ids[:, 11:], attention_mask=mask, past_key_values=first.past_key_values)
    close(rest.logits, whole[:, 11:])


@torch.no_grad()
def test_a_mask_of_four_dimensions_is_taken_as_it_is(model, ids):
    causal = torch.ones(20, 20, dtype=torch.bool).tril()[None, None].expand(3, 1, 20, 20)
    additive = torch.zeros(3, 1, 20, 20).masked_fill(~causal, torch.finfo(torch.float32).min)
    expected = model(ids).logits
    close(model(ids, attention_mask=causal).logits, expected)
    close(model(ids, attention_mask=additive).logits, expected)


def test_a_mask_that_does_not_fit_is_refused(model, ids):
    with pytest.raises(UserError, match=r"\(3, 19\).*need \(3, 20\)"):
        model(ids, attention_mask=torch.ones(3, 19))
    cache = model(ids).past_key_values
    with pytest.raises(UserError, match=r"need \(3, 21\)"):
        model(ids[:, :1], attention_mask=torch.ones(3, 1), past_key_values=cache)


@torch.no_grad()
def test_positions_can_be_given(make_decoder, ids):
    model = AssayForCausalLM.from_decoder(make_decoder(position="learned"))
    moved = model(ids, position_ids=torch.arange(5, 25)[None]).logits
    table = model.decoder.position.table.weight
    expected = model(ids).logits
    table[:20] = table[5:25].clone()
    assert not torch.allclose(moved, expected)
    close(moved, model(ids).logits)


@torch.no_grad()
def test_only_the_logits_that_are_asked_for(model, ids):
    logits = model(ids).logits
    close(model(ids, logits_to_keep=1).logits, logits[:, -1:])
    close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, logits[:, [0, 5]])


@torch.no_grad()
def test_the_loss_predicts_the_next_token(model, ids):
    labels = ids.clone()
    labels[0, :9] = -100
    output = model(ids, labels=labels)
    expected = cross_entropy(
        output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="mean"
    )
    torch.testing.assert_close(output.loss, expected)
    loss, logits = model(ids, labels=labels, use_cache=False, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


@torch.no_grad()
def test_loss_and_padding_are_those_of_transformers(tmp_path, randomize, ids):
    theirs = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2)
    ).eval()  # fmt: skip
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    ours = AssayForCausalLM.from_decoder(load(tmp_path))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    for options in ({}, {"num_items_in_batch": 100}):
        expected = theirs(ids, attention_mask=mask, labels=labels, **options)
        output = ours(ids, attention_mask=mask, labels=labels, **options)
        close(output.loss, expected.loss)
        close(output.logits[mask == 1], expected.logits[mask == 1])


def test_greedy_text_is_one_by_one_argmax(model, ids):
    text = ids[:, :8]
    for _ in range(12):
        with torch.no_grad():
            following = model.decoder(text)[:, -1].argmax(-1)
        text = torch.cat((text, following[:, None]), dim=1)
    cached = model.generate(ids[:, :8], attention_mask=WHOLE, **GREEDY)
    assert cached.tolist() == text.tolist()
    uncached = model.generate(ids[:, :8], attention_mask=WHOLE, use_cache=False, **GREEDY)
    assert uncached.tolist() == text.tolist()


def test_generation_with_a_static_cache(model, ids):
    expected = model.generate(ids[:, :8], attention_mask=WHOLE, **GREEDY)
    static = model.generate(ids[:, :8], attention_mask=WHOLE, cache_implementation="static", **GREEDY)
    assert static.tolist() == expected.tolist()


def test_generation_of_a_left_padded_batch(model, ids):
    mask = WHOLE.clone()
    mask[1, :4] = 0
    batch = model.generate(ids[:, :8], attention_mask=mask, **GREEDY)
    alone = model.generate(ids[1:2, 4:8], attention_mask=WHOLE[1:2, 4:8], **GREEDY)
    assert batch[1, 8:].tolist() == alone[0, 4:].tolist()


def test_beams_do_not_mix_up_the_cache(model, ids):
    options = {**GREEDY, "max_new_tokens": 6, "num_beams": 3, "attention_mask": WHOLE}
    cached = model.generate(ids[:, :8], **options)
    assert cached.tolist() == model.generate(ids[:, :8], use_cache=False, **options).tolist()


@torch.no_grad()
def test_from_pretrained_restores_everything(model, ids, tmp_path):
    model.save_pretrained(tmp_path)
    again = AssayForCausalLM.from_pretrained(tmp_path)
    assert not again.training
    assert again.decoder.config == model.decoder.config
    assert torch.equal(again(ids).logits, model(ids).logits)
    buffers = dict(again.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())


@torch.no_grad()
def test_half_precision_keeps_the_rotation_exact(make_decoder, ids, tmp_path):
    decoder = make_decoder()
    save(decoder, tmp_path / "model")
    model = AssayForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.decoder.position.frequencies, decoder.position.frequencies)
    logits = model(ids).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), decoder(ids), atol=0.25, rtol=0.05)
    assert torch.equal(logits, load(tmp_path / "model", dtype=torch.bfloat16)(ids))


def test_from_config_draws_new_weights(make_decoder):
    config = AssayConfig(make_decoder(init_std=0.5).config.dump())
    model = AutoModelForCausalLM.from_config(config)
    assert isinstance(model, AssayForCausalLM)
    weight = model.decoder.layers[0].mlp.branch.up.weight
    assert weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(model.decoder.final_norm.weight, torch.ones(32))
    assert torch.equal(model.decoder.position.frequencies, make_decoder(init_std=0.5).position.frequencies)


def test_a_tied_head_has_no_weight_of_its_own(make_decoder):
    tied = AssayForCausalLM.from_decoder(make_decoder(head="tied"))
    assert tied.config.tie_word_embeddings
    assert tied.get_output_embeddings() is None
    assert not any("head" in name for name in tied.state_dict())
    untied = AssayForCausalLM.from_decoder(make_decoder())
    assert not untied.config.tie_word_embeddings
    assert untied.get_output_embeddings() is untied.decoder.head.projection
    assert untied.get_input_embeddings() is untied.decoder.embedding


@torch.no_grad()
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_resized_embeddings_are_saved_and_loaded(make_decoder, ids, tmp_path, head):
    model = AssayForCausalLM.from_decoder(make_decoder(head=head))
    before = model(ids).logits
    model.resize_token_embeddings(70, mean_resizing=False)
    assert torch.equal(model(ids).logits[..., :61], before)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    assert torch.equal(load(tmp_path)(ids), model(ids).logits)


def test_gradients_reach_every_parameter(model, ids):
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


class TestConfig:
    def test_attributes_that_transformers_reads(self, make_decoder):
        config = AssayConfig(
            make_decoder(num_kv_heads=2, head_dim=16, intermediate_size=40).config.dump(), eos_token_id=3
        )
        assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (61, 32, 2)
        assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 16)
        assert (config.intermediate_size, config.max_position_embeddings) == (40, 64)
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 3, None)

    def test_it_survives_its_file(self, make_decoder, tmp_path):
        config = AssayConfig(make_decoder(norm={"name": "seednorm", "num_heads": 4}).config.dump())
        config.save_pretrained(tmp_path)
        again = AutoConfig.from_pretrained(tmp_path)
        assert isinstance(again, AssayConfig)
        assert again.to_diff_dict() | {"_name_or_path": ""} == config.to_diff_dict() | {"_name_or_path": ""}
        assert again.model_config() == config.model_config()
        assert json.loads((tmp_path / "config.json").read_text())["model"]["norm"] == {
            "name": "seednorm",
            "num_heads": 4,
        }

    def test_what_follows_from_the_model_cannot_be_contradicted(self, make_decoder):
        config = AssayConfig(make_decoder().config.dump(), hidden_size=999, num_hidden_layers=7)
        assert (config.hidden_size, config.num_hidden_layers) == (32, 2)

    def test_a_component_that_is_not_known(self):
        with pytest.raises(UserError, match="nearest: rms-norm"):
            AssayConfig({"norm": "rms-nrom"})
