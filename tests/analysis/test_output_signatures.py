from __future__ import annotations

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from scipy.stats import zscore
from sklearn.metrics import roc_auc_score
from transformers import LlamaConfig, LlamaForCausalLM

from assay.analysis.output_signatures import LOSNet, Signatures, auroc, baselines, fit, scores, signature, signatures
from assay.cli import main
from assay.errors import UserError

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, 20, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randint(0, 20, (6,), generator=GENERATOR)


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def some(texts=40, seed=0):
    """Signatures of random logits; the actual tokens of the first half are likelier."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(texts):
        logits = 2 * torch.randn(12, 30, generator=generator)
        likely = logits.argmax(-1)
        other = torch.randint(0, 30, (12,), generator=generator)
        known = torch.rand(12, generator=generator) < (0.7 if number < texts // 2 else 0.3)
        rows.append(signature(logits, torch.where(known, likely, other), top=8, length=16))
    return joined(rows), torch.arange(texts) < texts // 2


def joined(rows):
    fields = [f.name for f in dataclasses.fields(Signatures) if f.name != "vocab_size"]
    return Signatures(**{f: torch.cat([getattr(r, f) for r in rows]) for f in fields}, vocab_size=rows[0].vocab_size)


def assert_same(one, other):
    for field in dataclasses.fields(Signatures):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name))


def test_a_signature_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    found = signature(logits, torch.tensor([1]), top=4, length=2)
    standard = torch.tensor([1.5, 0.5, -0.5, -1.5]) / math.sqrt(5 / 3)
    torch.testing.assert_close(found.top[0, 0], standard)
    torch.testing.assert_close(found.actual[0], torch.tensor([standard[1].item(), 0.0]))
    assert found.rank.tolist() == [[1, 3]]
    assert found.real.tolist() == [[True, False]]
    normaliser = math.log(sum(math.exp(x) for x in (2, 1, 0, -1)))
    assert found.log_probability[0].tolist() == pytest.approx([1 - normaliser, 0])


def test_signatures_do_not_see_constants_temperature_or_the_order_of_the_vocabulary():
    found = signature(LOGITS, TARGETS, top=20)
    assert_same(signature(LOGITS + torch.arange(6.0)[:, None], TARGETS, top=20), found)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert_same(signature(LOGITS[:, order], order.argsort()[TARGETS], top=20), found)
    cold = signature(LOGITS * 3, TARGETS, top=20)
    for field in ("top", "actual", "rank"):
        torch.testing.assert_close(getattr(cold, field), getattr(found, field))


def test_signatures_are_those_of_scipy():
    found = signature(LOGITS, TARGETS, top=7, length=6)
    standard = zscore(LOGITS.log_softmax(-1).numpy(), axis=1, ddof=1)
    np.testing.assert_allclose(found.top[0], -np.sort(-standard)[:, :7], rtol=1e-5)
    np.testing.assert_allclose(found.actual[0], standard[np.arange(6), TARGETS], rtol=1e-4)


def test_equal_logits_share_the_rank_of_the_first():
    found = signature(torch.tensor([[1.0, 3.0, 1.0, 1.0, 0.0]]).expand(4, 5), torch.tensor([0, 1, 3, 4]), length=4)
    assert found.rank.tolist() == [[1, 0, 1, 4]]


def test_signatures_of_a_model_are_those_of_its_logits():
    model, ids = llama(), [5, 9, 9, 2, 30, 7]
    found = signatures(model, [ids[1:], ids[1:4]], separator=5, top=9, length=4)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    expected = signature(logits[:4], torch.tensor(ids[1:5]), top=9, length=4)
    torch.testing.assert_close(found.top[:1], expected.top, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.rank[:1], expected.rank)
    assert found.real.sum(1).tolist() == [4, 3]
    assert len(signatures(model, [ids], top=9).top) == 1
    assert signatures(model, [ids], top=9, length=8).real.sum() == 5, "without a separator nothing predicts the first"


def test_tokens_of_the_network_are_those_of_the_formula():
    torch.manual_seed(0)
    net = LOSNet(top=4, length=1, vocab_size=4, hidden_size=8, num_heads=2)
    x = signature(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([1]), top=4, length=1)
    a = x.actual[0, 0]
    z = net.tokens(x)[0, 0]
    torch.testing.assert_close(z[:4], net.left.weight @ x.top[0, 0] + net.left.bias)
    torch.testing.assert_close(z[4:], a * 0.5 * net.ranked + a * net.plain)


def test_the_network_is_pytorchs_post_norm_transformer_written_out():
    torch.manual_seed(1)
    net = LOSNet(top=8, length=16, vocab_size=30, hidden_size=16, num_heads=4).eval()
    x, _ = some(6)
    h = torch.cat((net.cls.expand(6, 1, 16), net.tokens(x)), 1) + net.positions.weight
    layer = net.encoder.layers[0]
    q, k, v = (h @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in (q, k, v))
    seen = torch.cat((torch.ones(6, 1, dtype=torch.bool), x.real), 1)
    attention = (q @ k.mT / 2).masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    h = layer.norm1(h + layer.self_attn.out_proj((attention @ v).transpose(1, 2).flatten(2)))
    h = layer.norm2(h + layer.linear2(layer.linear1(h).relu()))
    torch.testing.assert_close(scores(net, x), (h[:, 0] @ net.head.weight.T + net.head.bias)[:, 0].detach())


def test_padding_is_seen_only_without_the_mask():
    torch.manual_seed(2)
    logits, targets = torch.randn(5, 30), torch.randint(0, 30, (5,))
    x = signature(logits, targets, top=8, length=16)
    other = dataclasses.replace(x, rank=torch.where(x.real, x.rank, 0), actual=torch.where(x.real, x.actual, 1.0))
    for masked in (True, False):
        torch.manual_seed(3)
        net = LOSNet(top=8, length=16, vocab_size=30, hidden_size=16, masked=masked)
        assert torch.allclose(scores(net, x), scores(net, other), atol=1e-6) == masked


def test_baselines_by_hand_and_against_numpy():
    x, _ = some(8)
    found = baselines(x, 0.25)
    for text in range(8):
        lp = x.log_probability[text][x.real[text]].double().numpy()
        assert found["loss"][text].item() == pytest.approx(lp.mean(), rel=1e-5)
        assert found["min-k"][text].item() == pytest.approx(np.sort(lp)[:3].mean(), rel=1e-5)
    torch.testing.assert_close(baselines(x, 1.0)["min-k"], found["loss"])
    one = signature(LOGITS, TARGETS, top=3, length=6)
    p = LOGITS.softmax(-1).numpy()
    mean = (p * np.log(p)).sum(1)
    spread = np.sqrt((p * (np.log(p) - mean[:, None]) ** 2).sum(1))
    normed = (np.log(p[np.arange(6), TARGETS]) - mean) / spread
    assert baselines(one, 0.5)["min-k++"].item() == pytest.approx(np.sort(normed)[:3].mean(), rel=1e-4)


def test_area_under_the_curve_is_that_of_scikit_learn():
    score = torch.randint(0, 6, (50,), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.rand(50, generator=torch.Generator().manual_seed(1)) < 0.4
    assert auroc(score, labels) == pytest.approx(roc_auc_score(labels, score))


@pytest.mark.parametrize("top", [None, 0])
def test_what_is_learned_holds_for_other_texts(top):
    x, labels = some(120)
    net = fit(x, labels, top=top, hidden_size=32, epochs=20, lr=1e-3)
    assert (net.left is None) == (top == 0)
    unseen, truth = some(80, seed=1)
    assert auroc(scores(net, unseen), truth) > 0.9
    again = fit(x, labels, top=top, hidden_size=32, epochs=20, lr=1e-3)
    torch.testing.assert_close(scores(net, unseen), scores(again, unseen))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    from assay.data.tokenizers.bpe import add_separator, save

    place = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    add_separator(backend)
    save(backend, place)
    llama().save_pretrained(place)
    rng = np.random.default_rng(0)
    (place / "a.txt").write_text("\n".join("ab" * 10 for _ in range(15)))
    (place / "b.txt").write_text("\n".join("".join(rng.choice(list("xyz"), 20)) for _ in range(15)))
    (place / "new.jsonl").write_text('{"text": "ababab"}\n{"text": "xyzzy"}\n')
    return place


@pytest.fixture
def assay(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", "analyse", "output-signatures", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        lines = [line for line in written.err.splitlines() if line and "Loading weights" not in line]
        return left.value.code or 0, written.out, lines

    return run


def test_the_command_learns_and_judges(assay, folder):
    options = ["--positive", folder / "a.txt", "--negative", folder / "b.txt", "--top", 20, "--length", 16]
    status, out, err = assay(folder, *options, "--epochs", 5, "--score", folder / "new.jsonl", "--json")
    assert (status, err) == (0, [])
    document = json.loads(out)
    assert document["texts"] == {"positive": 15, "negative": 15, "held_out": 6}
    assert set(document["auc"]) == {"los-net", "loss", "min-k", "min-k++"}
    assert document["auc"]["los-net"] == 1, "texts of one kind are all alike"
    assert document["scores"][0] > document["scores"][1]
    status, out, _ = assay(folder, *options, "--epochs", 2)
    assert status == 0
    assert "on 6 texts that were held out" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--negative", "new.jsonl"], "error: 'new.jsonl' has 2 texts; at least 10 of each label are needed"),
        (["--negative", "none.txt"], "error: corpus 'text:none.txt': there is no such file or folder"),
        (["--negative", "."], "error: '.' is a folder"),
        (["--negative", "b.txt", "--top", "0"], "error: a signature of 100 tokens and 0 probabilities is empty"),
        (["--negative", "b.txt", "--share", "2"], "error: the share 2 of least likely tokens must be above 0"),
        (["--negative", "b.txt", "--epochs", "0"], "error: Invalid value for '--epochs'"),
    ],
)
def test_mistakes_are_one_line(assay, folder, monkeypatch, arguments, reason):
    monkeypatch.chdir(folder)
    status, out, err = assay(folder, "--positive", "a.txt", *arguments)
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith(reason)


def test_mistakes_of_a_caller():
    x, labels = some(20)
    with pytest.raises(UserError, match="4 texts with the label True; at least 5"):
        fit(x, labels & (torch.arange(20) < 4))
    with pytest.raises(UserError, match="hidden_size=20 must be even and a multiple of the 8 heads"):
        LOSNet(top=8, length=16, vocab_size=30, hidden_size=20)
    with pytest.raises(UserError, match="text 2 has 1 tokens; a signature needs at least 2"):
        signatures(llama(), [[1, 2, 3], [1]])
