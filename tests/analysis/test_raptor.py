from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from assay.analysis.generation import continuation
from assay.analysis.raptor import (
    STRENGTHS,
    last_states,
    probe_layers,
    raptor,
    ridge_path,
    split,
    steered,
)
from assay.cli import main
from assay.data.tokenizers.bytes import Bytes
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.saving import save


def states_of(layers: int = 2, texts: int = 80, hidden: int = 30, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(texts) % 2 == 0
    x = torch.randn(layers, texts, hidden, generator=generator, dtype=torch.float64)
    x[..., 0] += labels * 1.5
    return x, labels


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=32, n_layer=3, n_head=2, n_positions=64)).eval()


def test_two_texts_by_hand() -> None:
    """z = ±1 with labels ±1: u = 2 C σ(−u), so C = (1 + e) / 2 gives u = 1; by symmetry c = 0."""
    z, labels = torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([True, False])
    ((_, u, c),) = ridge_path(z, labels, [(1 + math.e) / 2])
    assert u.item() == pytest.approx(1, abs=1e-9)
    assert c == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("texts", "hidden"), [(60, 8), (20, 50)])
def test_the_optimum_is_that_of_scikit_learn(texts, hidden) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = states_of(1, texts, hidden)
    for strength, u, c in ridge_path(x[0], labels, [1e-4, 1e-2, 1.0, 100.0]):
        peer = linear_model.LogisticRegression(C=strength, tol=1e-10, max_iter=100_000).fit(x[0], labels)
        torch.testing.assert_close(u, torch.from_numpy(peer.coef_[0]), rtol=1e-4, atol=1e-6)
        assert c == pytest.approx(peer.intercept_[0], rel=1e-4, abs=1e-6)


def test_the_whole_choice_is_that_of_scikit_learn() -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, labels = states_of(2, 80, 30, seed=3)
    train, validation, test = split(labels, 5)
    for probe in probe_layers(x, labels, seed=5).probes:
        layer, y = x[probe.layer].numpy(), labels.numpy()
        scaler = StandardScaler().fit(layer[train])
        z = scaler.transform(layer)
        best, chosen = -1.0, 0.0
        for strength in STRENGTHS:
            reached = (
                LogisticRegression(C=strength, tol=1e-8).fit(z[train], y[train]).score(z[validation], y[validation])
            )
            if reached > best:
                best, chosen = reached, strength
        both = torch.cat((train, validation))
        peer = LogisticRegression(C=chosen, tol=1e-10, max_iter=10_000).fit(z[both], y[both])
        assert probe.ridge == pytest.approx(1 / chosen)
        assert probe.validation == pytest.approx(best)
        assert probe.test == pytest.approx(peer.score(z[test], y[test]))
        expected = torch.from_numpy(peer.decision_function(z))
        torch.testing.assert_close(probe.logits(x[probe.layer]), expected, rtol=1e-4, atol=1e-5)


def test_the_weak_limit_is_the_difference_of_the_means() -> None:
    x, labels = states_of(1, 200, 5)
    ((_, u, c),) = ridge_path(x[0], labels, [1e-7])
    means = x[0][labels].mean(0) - x[0][~labels].mean(0)
    assert torch.cosine_similarity(u, means, 0) == pytest.approx(1, abs=1e-9)
    assert c == pytest.approx(0, abs=1e-4)


def test_units_of_the_states_do_not_matter_and_labels_only_by_sign() -> None:
    x, labels = states_of()
    gains = torch.linspace(0.1, 20, x.shape[-1]).double()
    plain, scaled = probe_layers(x, labels).probes, probe_layers(x * gains - 7, labels).probes
    for one, other in zip(plain, scaled, strict=True):
        assert (one.ridge, one.validation, one.test) == (other.ridge, other.validation, other.test)
        torch.testing.assert_close(one.weight / gains, other.weight, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(one.logits(x[one.layer]), other.logits(x[one.layer] * gains - 7))
    ((_, u, c),) = ridge_path(x[0], labels, [1.0])
    ((_, swapped, d),) = ridge_path(x[0], ~labels, [1.0])
    torch.testing.assert_close(u, -swapped, rtol=1e-6, atol=1e-9)
    assert c == pytest.approx(-d)


def test_parts_are_apart_and_hold_both_kinds_in_their_shares() -> None:
    labels = torch.arange(150) < 100
    parts = split(labels, 0)
    assert sorted(torch.cat(parts).tolist()) == list(range(150))
    assert [(int(labels[p].sum()), int((~labels[p]).sum())) for p in parts] == [(64, 32), (16, 8), (20, 10)]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_states_are_the_hidden_states_of_transformers(make) -> None:
    model, tokenizer = make(), Bytes()
    texts = ["short", "a longer text"]
    states = last_states(model, tokenizer, texts)
    for position, text in enumerate(texts):
        ids = torch.tensor([[256, *text.encode()]])
        hidden = model(ids, output_hidden_states=True).hidden_states
        for layer in range(2):
            torch.testing.assert_close(states[layer, position], hidden[layer + 1][0, -1])
    assert states.shape == (3, 2, 32)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("target", [0.9, 0.2])
def test_steering_gives_the_probes_their_target(make, target) -> None:
    model, tokenizer = make(), Bytes()
    positive, negative = [f"yes {n}!" for n in range(10)], [f"no {n}?" for n in range(10)]
    found = raptor(model, tokenizer, positive, negative)
    with steered(model, found.probes, target):
        states = last_states(model, tokenizer, ["maybe", "yes 3!", "no 4?"])
        moved = model(torch.tensor([[256, *b"maybe"]])).logits
    for probe in found.probes:
        reached = probe.logits(states[probe.layer]).sigmoid()
        beyond = reached >= target - 1e-4 if target > 0.5 else reached <= target + 1e-4
        assert beyond.all()
    last = model(torch.tensor([[256, *b"maybe"]])).logits
    torch.testing.assert_close(moved[:, :-1], last[:, :-1])
    assert not torch.allclose(moved[:, -1], last[:, -1])


def test_a_state_at_its_target_stays() -> None:
    model, tokenizer = llama(), Bytes()
    found = raptor(model, tokenizer, [f"yes {n}!" for n in range(10)], [f"no {n}?" for n in range(10)])
    probe = found.probes[1]
    plain = last_states(model, tokenizer, ["yes 3!"])
    already = probe.logits(plain[1]).sigmoid().item()
    with steered(model, [probe], 0.5 + (already - 0.5) * 0.9):
        torch.testing.assert_close(last_states(model, tokenizer, ["yes 3!"]), plain, rtol=0, atol=0)
    assert already > 0.5


@pytest.mark.model
def test_steering_a_real_model_moves_the_next_word(smollm2) -> None:
    from assay.data.tokenizers.hugging_face import HuggingFaceTokenizer

    tokenizer = HuggingFaceTokenizer(folder=str(smollm2.file))
    forms = ["The film was {} from start to end.", "I found the whole story {}.", "The music was {}."]
    good, bad = ["superb", "charming", "excellent", "beautiful"], ["dreadful", "tedious", "boring", "ugly"]
    texts = [[form.format(word) for form in forms for word in words] for words in (good, bad)]
    found = raptor(smollm2.transformers, tokenizer, *texts)
    assert found.best.test == 1
    ids = torch.tensor([[tokenizer.separator, *tokenizer.encode("We saw the new play last night. It was")]])
    words = [int(tokenizer.encode(word)[0]) for word in (" wonderful", " terrible")]

    def odds(target: float) -> float:
        with steered(smollm2.transformers, found.above(0.7), target), torch.no_grad():
            logits = smollm2.transformers(ids).logits[0, -1]
        return (logits[words[0]] - logits[words[1]]).item()

    assert odds(0.8) > odds(0.2) + 2


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


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raptor")
    torch.manual_seed(0)
    save(
        Decoder(ModelConfig(depth=2, hidden_size=32, num_heads=2, vocab_size=257, max_length=64)),
        folder / "m",
        Bytes(),
    )
    for kind in ("yes", "no"):
        (folder / kind).write_text("".join(f"{kind} {n}\n\n" for n in range(12)))
    (folder / "few").write_text("one\ntwo\n")
    (folder / "long").write_text("x" * 64 + "\n" + "short\n" * 12)
    (folder / "binary").write_bytes(b"\0\1")
    return folder


def test_the_command_prints_what_the_function_finds_and_saves_it(assay, files, tmp_path) -> None:
    out = tmp_path / "v.safetensors"
    arguments = [str(files / "m"), "--positive", str(files / "yes"), "--negative", str(files / "no")]
    arguments += ["--steer", "may", "--above", "0", "--tokens", "3", "--save", str(out)]
    status, printed, _ = assay("analyse", "raptor", *arguments, "--json")
    assert status == 0
    document = json.loads(printed)
    assert document["texts"] == {"train": 16, "validation": 4, "test": 4}
    assert [layer["layer"] for layer in document["layers"]] == [0, 1]
    vectors = load_file(out)
    assert vectors["weight"].shape == (2, 32)
    torch.testing.assert_close(vectors["direction"].norm(dim=1), torch.ones(2))
    from assay.training.export import open_model, tokenizer_of

    model = open_model(files / "m")
    found = raptor(model, tokenizer_of(files / "m"), [f"yes {n}" for n in range(12)], [f"no {n}" for n in range(12)])
    assert document["layers"][1]["ridge"] == found.probes[1].ridge
    assert document["plain"] == continuation(model, Bytes(), "may", 3)
    torch.testing.assert_close(vectors["weight"][0], found.probes[0].weight.float())
    status, printed, _ = assay("analyse", "raptor", *arguments)
    assert status == 0
    assert printed.splitlines()[0].split() == ["layer", "ridge", "validation", "test"]
    assert printed.splitlines()[-1].startswith("steered: ")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positive": "none"}, "error: cannot read"),
        ({"positive": "binary"}, "error: '{files}/binary' is no UTF-8 text; give one text a line"),
        (
            {"negative": "few"},
            "error: a probe needs at least 5 texts of each kind; there are 12 positive and 2 negative",
        ),
        ({"negative": "long"}, "error: the text 'xxxx"),
        ({"target": "1"}, "error: --target 1.0 is no probability between 0 and 1"),
        (
            {"above": "1", "steer": "x"},
            "error: no layer's validation accuracy is above 1.0; --above sets a lower one",
        ),
        ({"save": "no/such/v.safetensors"}, "error: no folder"),
        ({"model": "nothing"}, "error: "),
    ],
)
def test_mistakes_are_one_line(assay, files, tmp_path, changes, reason) -> None:
    given = {"positive": "yes", "negative": "no", "save": "v.safetensors"} | changes
    arguments = [str(files / given.pop("model", "m"))]
    for option, value in given.items():
        place = {"positive": files, "negative": files, "save": tmp_path}.get(option)
        arguments += [f"--{option}", value if place is None else str(place / value)]
    status, out, err = assay("analyse", "raptor", *arguments)
    assert (status, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith(reason.format(files=files))
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = llama()
    model.config.num_hidden_layers = 7
    with pytest.raises(UserError, match="has no list of 7 layers"):
        last_states(model, Bytes(), ["x"])
    with pytest.raises(UserError, match="no probability"), steered(model, (), 0.0):
        pass
