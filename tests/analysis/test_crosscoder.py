from __future__ import annotations

import json
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from assay.analysis.crosscoder import Crosscoder, batch_top_k, read_latents, residual_pairs, scales_of, train
from assay.analysis.crosscoder.training import auxiliary, geometric_median, losses
from assay.cli import main
from assay.data.tokenizers import tokenizers
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.model import AssayForCausalLM


def random_crosscoder(hidden_size=6, latents=10, **options):
    """With decoders that differ between the two models."""
    found = Crosscoder(hidden_size, latents, **options)
    torch.manual_seed(0)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter)
    return found


def pairs(count, hidden_size=6, seed=1):
    return torch.randn(count, 2, hidden_size, generator=torch.Generator().manual_seed(seed))


def test_scaling_by_hand():
    """f = (1, 2, 0), d = (1, 1): β is 0.9 for the first model's errors and 0.5 for the second's, so ν is 1.8."""
    dictionary = Crosscoder(2, 1, kind="l1")
    dictionary.decoder.data = torch.ones(2, 1, 2)
    dictionary.encoder.data = torch.tensor([[[0.0], [0.0]], [[1.0], [0.0]]])
    first = torch.tensor([[1.0, 0.0], [2.0, 2.0], [5.0, 5.0]])
    second = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 7.0]])
    found = read_latents(dictionary, [torch.stack((first, second), 1)])
    assert found.scaling.count.tolist() == [2]
    assert found.scaling.error.flatten().tolist() == pytest.approx([0.9, 0.5])
    assert found.nu_error.item() == pytest.approx(1.8)
    assert found.scaling.reconstruction.flatten().tolist() == pytest.approx([1, 1])
    assert found.of("shared").tolist() == [True]


def test_scaling_recovers_planted_coefficients():
    """The other model has 0.3 of a latent's direction and something orthogonal to it: β = 0.3, exactly."""
    dictionary = Crosscoder(4, 2, kind="l1")
    dictionary.decoder.data = torch.zeros(2, 2, 4)
    dictionary.decoder.data[1] = torch.eye(4)[:2] * 2
    dictionary.encoder.data = torch.zeros(2, 4, 2)
    dictionary.encoder.data[1, :2] = torch.eye(2) / 2
    codes = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    second = codes @ dictionary.decoder.data[1]
    first = torch.zeros(50, 4)
    first[:, 0] = 0.3 * second[:, 0]
    first[:, 3] = 9.0
    found = read_latents(dictionary, torch.stack((first, second), 1).split(7))
    assert found.of("second").tolist() == [True, True]
    assert found.nu_error.tolist() == pytest.approx([0.3, 0], abs=1e-6)
    assert found.nu_reconstruction.tolist() == [0, 0]
    assert found.genuine.tolist() == [False, True]
    assert found.explained[1] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["l1", "batch-topk"])
def test_scaling_is_the_least_squares_solution(kind):
    """numpy's lstsq on the flattened targets of each latent and model, one by one."""
    dictionary = random_crosscoder(kind=kind, k=3)
    dictionary.threshold.fill_(4.0)
    dictionary.scale = torch.tensor([0.5, 2.0])
    x = pairs(60)
    found = read_latents(dictionary, x.split(16))
    x = x * dictionary.scale[:, None]
    with torch.no_grad():
        codes = torch.relu(sum(x[:, m] @ dictionary.encoder[m] for m in (0, 1)) + dictionary.encoder_bias)
        norms = dictionary.decoder[0].norm(dim=1) + dictionary.decoder[1].norm(dim=1)
        if kind == "batch-topk":
            codes = torch.where(codes * norms > 4, codes, 0)
        decoded = torch.stack([codes @ dictionary.decoder[m] + dictionary.decoder_bias[m] for m in (0, 1)], 1)
        for latent in range(10):
            f = codes[:, latent, None]
            own = int(dictionary.decoder[1, latent].norm() >= dictionary.decoder[0, latent].norm())
            basis = (f * dictionary.decoder[own, latent]).flatten().double().numpy()
            betas = {}
            for model in (0, 1):
                error = x[:, model] - decoded[:, model] + f * dictionary.decoder[model, latent]
                for name, target in (("error", error), ("reconstruction", decoded[:, model])):
                    solution = np.linalg.lstsq(basis[:, None], target.flatten().double().numpy(), rcond=None)
                    betas[name, model] = solution[0].item()
                    assert getattr(found.scaling, name)[model, latent].item() == pytest.approx(
                        betas[name, model], abs=1e-5
                    )
            expected = betas["error", 1 - own] / betas["error", own]
            assert found.nu_error[latent].item() == pytest.approx(expected, rel=1e-3)
        left = (x - decoded).square().sum((0, 2)) / (x - x.mean(0)).square().sum((0, 2))
    assert found.explained == pytest.approx((1 - left).tolist(), rel=1e-5)
    assert found.active == pytest.approx((codes > 0).sum().item() / 60)


def test_batch_top_k_keeps_k_per_pair_of_the_whole_batch():
    codes = torch.rand(8, 20, generator=torch.Generator().manual_seed(0)) + 0.1
    scores = codes * torch.linspace(1, 5, 20)
    kept = batch_top_k(codes, scores, 3)
    assert (kept > 0).sum() == 24
    order = np.argsort(scores.flatten().numpy())[::-1]
    expected = np.zeros(160, np.float32)
    expected[order[:24]] = codes.flatten().numpy()[order[:24]]
    assert np.array_equal(kept.flatten().numpy(), expected)
    assert len(set((kept > 0).sum(1).tolist())) > 1


def test_selection_is_free_of_the_codes_scale():
    """Encoder and its bias times c, decoder over c: the same scores, selection and reconstruction."""
    dictionary = random_crosscoder(k=2)
    x = pairs(12)
    no_dead = torch.zeros(10, dtype=torch.bool)
    loss, codes = losses(dictionary, x, no_dead, 0.0)
    factors = torch.linspace(0.5, 3, 10)
    dictionary.encoder.data *= factors
    dictionary.encoder_bias.data *= factors
    dictionary.decoder.data /= factors[:, None]
    scaled_loss, scaled = losses(dictionary, x, no_dead, 0.0)
    assert (codes > 0).sum() <= 24
    torch.testing.assert_close(scaled, codes * factors)
    torch.testing.assert_close(scaled_loss, loss)


def test_losses_by_plain_arithmetic():
    dictionary = random_crosscoder(kind="l1")
    x = pairs(5)
    loss, codes = losses(dictionary, x, torch.zeros(10, dtype=torch.bool), 0.25)
    e, d, b = (tensor.detach().double().numpy() for tensor in (dictionary.encoder, dictionary.decoder, x))
    bias, out = (tensor.detach().double().numpy() for tensor in (dictionary.encoder_bias, dictionary.decoder_bias))
    f = np.maximum(b[:, 0] @ e[0] + b[:, 1] @ e[1] + bias, 0)
    distances = [np.linalg.norm(b[:, m] - f @ d[m] - out[m], axis=1) for m in (0, 1)]
    norms = np.linalg.norm(d, axis=2).sum(0)
    assert loss.item() == pytest.approx(np.mean(distances) + 0.25 * (f * norms).sum(1).mean(), rel=1e-5)
    assert codes.double().numpy() == pytest.approx(f, abs=1e-5)


def test_dead_latents_explain_what_is_left():
    """One dead latent whose direction is the error of every pair leaves nothing."""
    dictionary = Crosscoder(2, 3, k=1)
    dictionary.decoder.data[:, 1] = torch.tensor([0.6, 0.8])
    codes = torch.tensor([[0.0, 1.0, 5.0], [0.0, 3.0, 5.0]])
    error = torch.einsum("b,h->bh", codes[:, 1], torch.tensor([0.6, 0.8]))[:, None].repeat(1, 2, 1)
    dead = torch.tensor([True, True, False])
    assert auxiliary(dictionary, error, codes, codes * 2, dead).item() == pytest.approx(0, abs=1e-12)
    assert auxiliary(dictionary, error, codes, codes * 2, dead & False).item() == 0
    only_first = torch.tensor([True, False, False])
    # error 1 and 3 along one direction: nothing explained of mean square 5, over a variance of 1
    assert auxiliary(dictionary, error, codes, codes * 2, only_first).item() == pytest.approx(5)


def test_geometric_median_has_the_least_distances():
    from scipy.optimize import minimize

    x = pairs(31, 3).double()
    x[0] += 100
    found = geometric_median(x)
    for model in (0, 1):
        points = x[:, model].numpy()
        best = minimize(lambda c, p=points: np.linalg.norm(p - c, axis=1).sum(), points.mean(0), tol=1e-10)
        assert found[model].numpy() == pytest.approx(best.x, abs=1e-3)


def test_identical_models_share_all_latents():
    """Equal starts and equal activations: the two decoders stay equal at every step."""
    x = pairs(400, 8)[:, :1].repeat(1, 2, 1)
    dictionary = Crosscoder(8, 16, k=4)
    train(dictionary, x.split(40) * 3, steps=30, lr=1e-2)
    assert torch.equal(dictionary.decoder[0], dictionary.decoder[1])
    assert dictionary.differences().tolist() == [0.5] * 16
    assert dictionary.threshold > 0
    found = read_latents(dictionary, [x])
    active = found.scaling.count > 0
    assert found.nu_error[active].tolist() == pytest.approx([1] * int(active.sum()), rel=1e-5)


def test_finds_what_only_one_of_two_models_has():
    """Ten orthogonal directions, of which each model has one for itself: ten latents are used, one for each."""
    generator = torch.Generator().manual_seed(4)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:10] * 4
    codes = (torch.rand(6000, 10, generator=generator) < 0.2) * (0.5 + torch.rand(6000, 10, generator=generator))
    first, second = codes.clone(), codes.clone()
    first[:, 9], second[:, 8] = 0, 0
    x = torch.stack((first @ directions, second @ directions), 1)
    dictionary = Crosscoder(16, 24, k=2)
    dictionary.scale = scales_of([x])
    assert (x * dictionary.scale[:, None]).square().mean((0, 2)).tolist() == pytest.approx([1, 1], rel=1e-4)
    train(dictionary, x.split(100) * 25, steps=1500, lr=3e-3)
    found = read_latents(dictionary, [x])
    assert min(found.explained) > 0.998
    assert [int(found.of(which).sum()) for which in ("first", "second", "shared")] == [1, 1, 8]
    assert torch.equal(found.genuine, found.of("first") | found.of("second"))
    nearest = (dictionary.decoder.detach() @ directions.T).abs().argmax(-1)
    assert nearest[0, found.of("first")].tolist() == [8]
    assert nearest[1, found.of("second")].tolist() == [9]
    assert sorted(nearest[0, found.of("shared")].tolist()) == list(range(8))


def llama(seed, **options):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3}
    return LlamaForCausalLM(LlamaConfig(vocab_size=257, **sizes | options)).eval()


def test_pairs_are_hidden_states_of_transformers():
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=16, n_layer=3, n_head=2)).eval()
    windows = torch.randint(0, 257, (5, 7), generator=torch.Generator().manual_seed(0))
    found = list(residual_pairs(llama(0), gpt2, windows, layer=1, batch_size=8))
    assert [len(batch) for batch in found] == [24, 6] or sum(map(len, found)) == 30
    for model, column in ((llama(0), 0), (gpt2, 1)):
        with torch.no_grad():
            states = model(input_ids=windows, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(torch.cat(found)[:, column], states[:, 1:].flatten(0, 1))
    shuffled = list(islice(residual_pairs(llama(0), gpt2, windows, layer=1, batch_size=8, seed=0), 9))
    assert {len(batch) for batch in shuffled} == {8}
    known = {tuple(row.tolist()) for row in torch.cat(found)[:, 0]}
    assert len({tuple(row.tolist()) for row in torch.cat(shuffled)[:, 0]} & known) > 20


def test_pairs_of_a_decoder_are_its_residual_stream():
    torch.manual_seed(0)
    decoder = Decoder(
        ModelConfig.parse({"vocab_size": 257, "hidden_size": 16, "depth": 2, "num_heads": 2, "max_length": 8})
    ).eval()
    model = AssayForCausalLM.from_decoder(decoder)
    windows = torch.randint(0, 257, (2, 5), generator=torch.Generator().manual_seed(0))
    (found,) = residual_pairs(model, model, windows, layer=1, batch_size=8)
    with torch.no_grad():
        expected = decoder.hidden(windows)[:, 1:].flatten(0, 1)
        torch.testing.assert_close(decoder.final_norm(found[:, 0]), expected)


def test_saved_and_loaded_is_the_same(tmp_path):
    dictionary = random_crosscoder(k=3)
    dictionary.threshold.fill_(2.5)
    dictionary.save(tmp_path / "new", {"active": 3.0})
    loaded = Crosscoder.load(tmp_path / "new")
    torch.testing.assert_close(loaded.encode(pairs(9)), dictionary.encode(pairs(9)), rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    with pytest.raises(UserError, match="is there already"):
        dictionary.save(tmp_path / "new", {})
    (tmp_path / "new" / "crosscoder.json").write_text('{"crosscoder": {"hidden_size": 3, "latents": 2}}')
    with pytest.raises(UserError, match="holds no crosscoder"):
        Crosscoder.load(tmp_path / "new")


@pytest.fixture
def assay(monkeypatch, capsys):
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return run


@pytest.fixture
def models(tmp_path):
    places = []
    for name, model in (("a", llama(0)), ("b", llama(1)), ("wide", llama(0, hidden_size=32))):
        model.save_pretrained(tmp_path / name)
        tokenizers.build("bytes").save(tmp_path / name)
        places.append(str(tmp_path / name))
    text = tmp_path / "text.txt"
    text.write_text("a dictionary for the activations of two models " * 20)
    return *places, str(text)


def test_command_writes_what_it_reports(assay, models, tmp_path):
    a, b, _, text = models
    out = str(tmp_path / "out")
    options = ["--layer", "1", "--text", text, "--latents", "32", "--k", "4", "--steps", "20", "--batch-size", "32"]
    status, printed, err = assay("analyse", "crosscoder", a, b, *options, "--length", "32", "--out", out, "--json")
    assert status == 0, err
    report = json.loads(printed)
    saved = json.loads((tmp_path / "out" / "crosscoder.json").read_text())
    assert saved["crosscoder"] == {"hidden_size": 16, "latents": 32, "kind": "batch-topk", "k": 4}
    assert saved["report"] == {name: value for name, value in report.items() if name != "crosscoder"}
    decoder = load_file(tmp_path / "out" / "crosscoder.safetensors")["decoder"]
    first, second = decoder.norm(dim=-1)
    expected = 0.5 * (1 + (second - first) / torch.maximum(first, second))
    assert report["columns"]["difference"] == pytest.approx(expected.tolist())
    other = str(tmp_path / "other")
    status, printed, err = assay(
        "analyse", "crosscoder", a, b, *options, "--length", "32", "--kind", "l1", "--out", other
    )
    assert status == 0, err
    assert printed.splitlines()[0].split() == ["class", "latents", "genuine"]


def test_command_says_what_is_wrong_in_one_line(assay, models, tmp_path):
    a, b, wide, text = models
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    usual = {"--layer": "1", "--latents": "32", "--k": "4", "--length": "32", "--steps": "2", "--text": text}
    usual["--out"] = str(tmp_path / "out")
    for second, changed, reason in (
        (b, {"--layer": "3"}, "layers 0 to 2"),
        (b, {"--layer": "-1"}, "layers 0 to 2"),
        (wide, {}, "16 and 32 features"),
        (b, {"--k": "33"}, "k is 33"),
        (b, {"--latents": "0"}, "1 at least"),
        (b, {"--steps": "0"}, "steps is 0"),
        (b, {"--batch-size": "0"}, "batch-size is 0"),
        (b, {"--length": "900"}, "1 window"),
        (b, {"--out": str(tmp_path / "full")}, "is there already"),
        (b, {"--kind": "jumprelu"}, "jumprelu"),
        (b, {"--lr": "nan"}, "lr is nan"),
        (b, {"--lr": "1e25"}, "lower learning rate"),
    ):
        options = [word for both in (usual | changed).items() for word in both]
        status, out, err = assay("analyse", "crosscoder", a, second, *options)
        assert (status, out) == (2, ""), (changed, err)
        assert reason in err
        assert len([line for line in err.splitlines() if line and "it/s" not in line]) == 1
    assert not (tmp_path / "out").exists()
