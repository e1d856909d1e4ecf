import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from assay.analysis.gradient_spectra import Factors, Sample, cut_to, gradient_spectra, read_samples
from assay.cli import main
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.model import AssayForCausalLM

SHAPE = {
    "vocab_size": 60, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def llama(seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2, initializer_range=0.2)).eval()


def sample(length=30, start=10, seed=0):
    return Sample(torch.randint(0, 60, (length,), generator=torch.Generator().manual_seed(seed)), start)


def by_autograd(model, one, weights):
    """Gradients of the given weights by a plain backward pass with labels of −100 before the response."""
    labels = one.ids.clone()
    labels[: one.start] = -100
    loss = model(input_ids=one.ids[None], labels=labels[None]).loss
    return torch.autograd.grad(loss, weights)


def entropy_rank(matrix):
    singular = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    shares = singular / singular.sum()
    return np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def cosine(a, b):
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize("length", [14, 60])
def test_the_spectra_are_those_of_the_whole_gradients(length):
    """Below and above the sides of the weights: by their factors, and whole."""
    model, one = llama(), sample(length)
    found = gradient_spectra(model, [one])
    attentions = [layer.self_attn for layer in model.model.layers]
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    gradients = by_autograd(model, one, [getattr(a, name).weight for a in attentions for name in names])
    table = [gradients[4 * layer : 4 * layer + 4] for layer in range(3)]
    for layer, row in enumerate(table):
        for column, gradient in enumerate(row):
            norm = torch.linalg.matrix_norm(gradient, "nuc").item()
            assert found.nuclear_norm[layer, column] == pytest.approx(norm, rel=1e-4)
            assert found.effective_rank[layer, column] == pytest.approx(entropy_rank(gradient), rel=1e-3)
            if layer < 2:
                expected = cosine(gradient, table[layer + 1][column])
                assert found.adjacent[layer, column] == pytest.approx(expected, abs=1e-4)
        q, k, v, o = row
        assert found.same[layer] == pytest.approx([cosine(q.T, o), cosine(k, v)], abs=1e-4)
    assert found.scores[0] == pytest.approx([found.nuclear_norm.mean(), found.effective_rank.mean()])


def test_the_rank_is_at_most_the_number_of_positions():
    found = gradient_spectra(llama(), [sample(6, 2)])
    assert (found.effective_rank <= 6 + 1e-4).all()
    assert (found.effective_rank >= 1).all()


def test_a_response_of_one_token_after_one_has_gradients_of_rank_one():
    """Of v and o: with one position nothing else is attended to, so q and k have none."""
    found = gradient_spectra(llama(), [sample(2, 1)])
    assert found.effective_rank[:, 2:] == pytest.approx(1, abs=1e-3)
    assert np.nan_to_num(found.nuclear_norm[:, :2]) == pytest.approx(0, abs=1e-6)


def test_norms_scale_with_the_gradient_and_ranks_do_not():
    model, one = llama(), sample()
    plain = gradient_spectra(model, [one])
    model.lm_head.register_full_backward_hook(lambda module, inputs, outputs: (3 * inputs[0],))
    tripled = gradient_spectra(model, [one])
    np.testing.assert_allclose(tripled.nuclear_norm, 3 * plain.nuclear_norm, rtol=1e-4)
    np.testing.assert_allclose(tripled.effective_rank, plain.effective_rank, rtol=1e-4)


def test_what_has_no_gradient_is_left_out():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    found = gradient_spectra(model, [sample()])
    assert np.isnan(found.effective_rank[1, :3]).all()
    assert np.isfinite(found.effective_rank[[0, 2]]).all()
    assert np.isfinite(found.scores).all()


def test_means_are_over_samples():
    model = llama()
    both = [sample(20, 5, seed=1), sample(33, 12, seed=2)]
    found, parts = gradient_spectra(model, both), [gradient_spectra(model, [one]) for one in both]
    for name in ("nuclear_norm", "effective_rank", "adjacent", "same"):
        np.testing.assert_allclose(
            getattr(found, name), np.mean([getattr(p, name) for p in parts], axis=0), rtol=1e-6
        )
    assert found.tokens == (15 + 21) / 2
    assert found.scores.shape == (2, 2)


def test_factors_are_the_matrix_that_they_stand_for():
    generator = torch.Generator().manual_seed(0)
    one, other = (
        Factors(torch.randn(5, 9, generator=generator), torch.randn(5, 7, generator=generator)) for _ in "ab"
    )
    whole = one.outputs.T @ one.inputs
    torch.testing.assert_close(one.singular_values(), torch.linalg.svdvals(whole)[:5])
    assert one.dot(other).item() == pytest.approx((whole * (other.outputs.T @ other.inputs)).sum().item(), rel=1e-4)
    assert one.cosine(one) == pytest.approx(1)


def test_the_model_is_left_as_it_was():
    model = llama().train()
    model.lm_head.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    gradient_spectra(model, [sample()])
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.model.layers[0].self_attn.q_proj._forward_hooks


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_embd=24, n_layer=3, n_head=4, n_positions=64)
    ), lambda a: [g.T for g in a.c_attn.weight.grad.split(24, dim=1)] + [a.c_proj.weight.grad.T]


def gpt_neox():
    def parts(a):
        heads = a.query_key_value.weight.grad.view(4, 3, 6, 24)
        return [*(heads[:, part].flatten(0, 1) for part in range(3)), a.dense.weight.grad]

    return GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)), parts


def phi3():
    return Phi3ForCausalLM(Phi3Config(**SHAPE, num_key_value_heads=2)), lambda a: [
        *a.qkv_proj.weight.grad.split([24, 12, 12]),
        a.o_proj.weight.grad,
    ]


@pytest.mark.parametrize("family", [gpt2, gpt_neox, phi3])
def test_fused_projections_are_cut_apart(family):
    torch.manual_seed(0)
    model, parts = family()
    model.eval()
    one = sample(16, 5)
    found = gradient_spectra(model, [one])
    labels = one.ids.clone()
    labels[: one.start] = -100
    model(input_ids=one.ids[None], labels=labels[None]).loss.backward()
    attentions = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
    assert len(attentions) == 3
    for layer, attention in enumerate(attentions):
        norms = [torch.linalg.matrix_norm(gradient, "nuc").item() for gradient in parts(attention)]
        assert found.nuclear_norm[layer] == pytest.approx(norms, rel=1e-3)


def test_our_own_decoders_work():
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig(depth=2, hidden_size=16, num_heads=2, vocab_size=60, max_length=64)).eval()
    one = sample()
    found = gradient_spectra(AssayForCausalLM.from_decoder(decoder), [one])
    logits = AssayForCausalLM.from_decoder(decoder)(one.ids[None]).logits[0]
    F.cross_entropy(logits[one.start - 1 : -1], one.ids[one.start :]).backward()
    weight = decoder.layers[0].get_submodule("mixer.branch").value.weight
    assert found.nuclear_norm[0, 2] == pytest.approx(torch.linalg.matrix_norm(weight.grad, "nuc").item(), rel=1e-4)


def test_responses_are_cut_to_one_length():
    cut = cut_to([sample(30, 10), sample(14, 10)], 8)
    assert [len(one.ids) for one in cut] == [18]


class Bytes:
    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


def test_samples_are_read_as_instruction_input_and_response(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [
        {"instruction": "add", "input": "1 2", "output": "3"},
        {"prompt": "hi", "completion": "ho"},
        {"instruction": "x" * 50, "output": "gone"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first, second = read_samples(path, Bytes(), longest=40)
    assert bytes(first.ids.tolist()) == b"add\n1 2\n3"
    assert bytes(first.ids[first.start :].tolist()) == b"3"
    assert (bytes(second.ids.tolist()), second.start) == (b"hi\nho", 3)


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
    """A folder of a small Llama with a tokenizer of bytes, and two data sets."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("checkpoint")
    letters = {letter: i for i, letter in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"])}
    backend = Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": 257})).save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(folder / "model")
    for name, answer in (("short", "four"), ("long", "four, as two and two make four")):
        record = {"instruction": "What is two and two?", "output": answer}
        (folder / f"{name}.jsonl").write_text((json.dumps(record) + "\n") * 3)
    return folder


def test_the_command_compares_files(assay, checkpoint):
    arguments = [str(checkpoint / name) for name in ("model", "short.jsonl", "long.jsonl")]
    status, out, err = assay("analyse", "gradient-spectra", *arguments, "--samples", "2")
    assert status == 0, err
    assert "--length 4 makes them equal" in out
    status, out, _ = assay("analyse", "gradient-spectra", *arguments, "--length", "4", "--json")
    short, long = json.loads(out)
    assert short["response_tokens"] == long["response_tokens"] == 4
    assert short["scores"] == pytest.approx(np.array(long["scores"]))  # both responses begin alike
    assert np.shape(short["nuclear_norm"]) == (3, 4)


@pytest.mark.parametrize(
    ("line", "options", "reason"),
    [
        ("no json", [], "bad.jsonl, line 1: no JSON"),
        ('{"instruction": "hi"}', [], "bad.jsonl, line 1: an object with texts 'instruction' and 'output'"),
        ('{"instruction": "hi", "output": "ho"}', ["--length", "9"], "no sample with a response of 9 tokens or more"),
        ("\0", [], "is no UTF-8 text"),
    ],
)
def test_mistakes_are_one_line(assay, checkpoint, tmp_path, line, options, reason):
    (tmp_path / "bad.jsonl").write_text(line)
    path = str(tmp_path / "bad.jsonl")
    status, out, err = assay("analyse", "gradient-spectra", str(checkpoint / "model"), path, *options)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "samples", "reason"),
    [
        (llama(), [], "no samples"),
        (llama(), [sample(5, 5)], "must be an instruction"),
        (torch.nn.Linear(3, 3), [sample()], "no attention found"),
    ],
)
def test_what_cannot_be_measured_is_said(model, samples, reason):
    with pytest.raises(UserError, match=reason):
        gradient_spectra(model, samples)
