import json
import math
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from assay.analysis.activation_sparsity import (
    DataLaw,
    SparseRun,
    TailError,
    WidthDepthLaw,
    activation_sparsities,
    activation_sparsity,
    fit_data,
    fit_width_depth,
)
from assay.analysis.activation_sparsity.thresholds import ffn_outputs
from assay.cli import main
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.model import AssayForCausalLM


def llama(act="relu", seed=0, **options):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.15, hidden_act=act, **options,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 50, (8, 64), generator=torch.Generator().manual_seed(0))


def learnt(ids, seed=0, steps=150):
    """A network whose FFNs matter: it has learnt the text partly by heart."""
    model = llama("silu", seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained(ids):
    return learnt(ids)


def test_the_tail_error_of_worked_numbers():
    """‖n‖ = (3, 2, 1) and the output is (4, −2)."""
    layer = TailError(torch.tensor([[3.0, -1.0, 0.5]]), torch.tensor([[1.0, 0, 2], [0, 2, 0]]))
    assert layer.contributions.tolist() == [[3, 2, 1]]
    for threshold, error in ((0.9, 0), (1.1, 0.223607), (2.5, 0.5), (9, 1)):
        assert layer.at(threshold) == pytest.approx(error, abs=1e-6)
    spacing = layer.candidates[1].item()
    assert 2 - spacing <= layer.threshold(0.3) < 2
    assert layer.threshold(0.1) == pytest.approx(1, abs=2 * spacing)


def test_what_is_left_out_does_not_depend_on_how_a_neuron_is_scaled():
    generator = torch.Generator().manual_seed(0)
    z, weight = torch.randn(20, 30, generator=generator), torch.randn(8, 30, generator=generator)
    scale = torch.rand(30, generator=generator) + 0.5
    plain, scaled = TailError(z, weight), TailError(z * scale, weight / scale)
    assert scaled.threshold(0.2) == pytest.approx(plain.threshold(0.2), rel=1e-3)


def test_thresholds_are_the_largest_candidates_whatever_was_asked_before():
    generator = torch.Generator().manual_seed(0)
    z, weight = torch.randn(50, 64, generator=generator), torch.randn(16, 64, generator=generator)
    asked = TailError(z, weight)
    for cett in (0.5, 0.1, 0.11, 0.4, 0.1):
        threshold = asked.threshold(cett)
        assert threshold == TailError(z, weight).threshold(cett)
        assert asked.at(threshold) <= cett < asked.at(threshold + asked.candidates[1].item())


def test_the_perplexity_rises_by_what_was_asked(ids, trained):
    for percent in (1.0, 10.0):
        found = activation_sparsity(trained, ids, percent)
        assert found.perplexity_ratio == pytest.approx(1 + percent / 100, abs=percent / 10_000 + 1e-5)
        assert 0 < found.sparsity < 1


def test_loss_and_ratio_are_those_of_masks_set_by_hand(ids):
    model = llama("silu")
    found = activation_sparsity(model, ids, 5.0)
    assert found.loss == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    kept = []
    for layer, own in zip(model.model.layers, found.layers, strict=True):
        mlp = layer.mlp

        def forward(x, mlp=mlp, own=own):
            z = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
            mask = z.abs() > own.threshold / mlp.down_proj.weight.norm(dim=0)
            kept.append(mask.float().mean().item())
            return (z * mask) @ mlp.down_proj.weight.T

        mlp.forward = forward
    with torch.no_grad():
        assert found.sparse_loss == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    assert found.activation_ratio == pytest.approx(np.mean(kept), rel=1e-3)


def test_exact_zeros_of_relu_cost_nothing(ids):
    found = SparseRun(llama("relu"), ids).at(0.0)
    assert found.sparse_loss == pytest.approx(found.loss, abs=1e-6)
    assert 0.4 < found.activation_ratio < 0.6
    assert SparseRun(llama("silu"), ids).at(0.0).activation_ratio > 0.999


def test_several_checkpoints_share_one_error(ids):
    runs = [SparseRun(learnt(ids, seed, steps=60), ids) for seed in range(3)]
    found = activation_sparsities(runs, 5.0, last=2)
    assert len({one.cett for one in found}) == 1
    assert np.mean([one.perplexity_ratio for one in found[1:]]) == pytest.approx(1.05, abs=6e-4)
    assert found[0] == runs[0].at(found[0].cett)


def test_a_network_that_does_not_need_its_ffns_gives_them_all_up(ids):
    model = llama("silu")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert activation_sparsity(model, ids).cett == 1


def test_ffns_are_found_in_other_networks(ids):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    assert ffn_outputs(gpt2) == ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]
    layer = SparseRun(gpt2, ids).layers["transformer.h.0.mlp.c_proj"]
    assert layer.weight.shape == (16, 64)
    assert layer.at(math.inf) == pytest.approx(1)
    decoder = Decoder(ModelConfig(depth=2, hidden_size=16, num_heads=2, vocab_size=50, max_length=64))
    ours = AssayForCausalLM.from_decoder(decoder.eval())
    assert len(SparseRun(ours, ids).layers) == 2


def test_any_module_that_gives_logits_will_do(ids):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 50))
    found = activation_sparsity(model, ids, outputs=["3"])
    assert [layer.name for layer in found.layers] == ["3"]
    with pytest.raises(UserError, match="no FFN found"):
        activation_sparsity(model, ids)


def test_published_fits_give_published_ratios():
    assert DataLaw("relu", 1.56e-4, 1.53, -3.46, 0.0648)(100) == pytest.approx(0.0911, abs=1e-4)
    assert DataLaw("relu", 1.56e-4, 1.53, -3.46, 0.0648)(800) == pytest.approx(0.0652, abs=1e-4)
    assert DataLaw("silu", 0.562, 0.995, 0, 0.383)(10) == pytest.approx(0.326, abs=1e-3)


@pytest.mark.parametrize(
    "law", [DataLaw("relu", 7.97e-3, 1.01, -3.49, 0.0721), DataLaw("silu", 0.102, 0.479, 0, 0.409)]
)
def test_a_law_is_found_again_from_its_points(law):
    tokens = np.geomspace(5, 600, 12)
    fit = fit_data(law.kind, list(tokens), [law(d) for d in tokens])
    assert fit.error < 1e-6
    assert (fit.limit, fit.alpha, fit.c) == pytest.approx((law.limit, law.alpha, law.c), rel=1e-2)


def test_a_noisy_law_is_that_of_scipy():
    law = DataLaw("silu", 0.5, 0.9, 0, 0.38)
    tokens = np.geomspace(2, 300, 20)
    ratios = np.array([law(d) for d in tokens]) + 0.002 * np.random.default_rng(0).standard_normal(20)
    values, _ = curve_fit(lambda d, c, alpha, limit: limit - c / d**alpha, tokens, ratios, (0.4, 1, 0.4))
    fit = fit_data("silu", list(tokens), list(ratios))
    assert (fit.c, fit.alpha, fit.limit) == pytest.approx(values, rel=1e-4)


def test_the_knee_of_width_and_depth_is_found():
    law = WidthDepthLaw(-0.0005, 0.14, 114.0)
    shapes = [18.0, 29, 44, 70, 96, 130, 170, 210]
    fit = fit_width_depth(shapes, [law(r) for r in shapes])
    assert fit.knee == pytest.approx(114, rel=0.01)
    assert fit(300) == pytest.approx(law(300), rel=1e-3)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda ids: activation_sparsity(llama(), ids, -1.0), "must be positive"),
        (lambda ids: activation_sparsity(llama(), ids[0]), "windows"),
        (lambda ids: fit_data("relu", [1, 2, 3, 4], [0.1, 0.1, 0.1, 0.1]), "at least 5"),
        (lambda ids: fit_data("silu", [1, 2, 3], [0.1, 0.1]), "one for each"),
        (lambda ids: fit_width_depth([1, 2, 3, 4], [0.1, 0.1, 0, 0.1]), "positive numbers"),
    ],
)
def test_what_cannot_be_measured_is_said(call, reason, ids):
    with pytest.raises(UserError, match=reason):
        call(ids)


@pytest.fixture
def assay(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of a small Llama with a tokenizer of bytes, and a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*alphabet, "<end>"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tmp_path = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("It is a truth universally acknowledged. " * 20)
    return str(tmp_path / "model"), str(tmp_path / "text.txt")


def test_the_command_prints_what_the_function_gives(assay, checkpoint):
    model, text = checkpoint
    status, out, err = assay("analyse", "activation-sparsity", model, "--text", text, "--window", "64", "--json")
    assert status == 0, err
    (found,) = json.loads(out)["models"]
    assert len(found["layers"]) == 2
    assert found["sparsity"] == pytest.approx(1 - found["activation_ratio"])
    assert "sparsity" in assay("analyse", "activation-sparsity", model, "--text", text, "--tokens", "64")[1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--percent", "0"], "error: Invalid value for '--percent'"),
        (["--trained", "1B,2B"], "error: --trained has 2 numbers for 1 models"),
        (["--trained", "many"], "error: 'many' is not a number"),
        (["--text", "/no/such"], "error: cannot read '/no/such'"),
        (["--law", "gelu"], "error: Invalid value for '--law'"),
    ],
)
def test_mistakes_are_one_line(assay, checkpoint, options, reason):
    model, text = checkpoint
    status, out, err = assay("analyse", "activation-sparsity", model, "--text", text, *options)
    assert (status, out) == (2, "")
    assert err.startswith(reason)
    assert err.count("\n") == 1
