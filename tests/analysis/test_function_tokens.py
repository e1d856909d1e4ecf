from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from assay.analysis.function_tokens import (
    class_losses,
    count_tokens,
    equal_degrees,
    feature_graph,
    function_tokens,
    observe,
)
from assay.analysis.function_tokens.autoencoder import Encoder, fit_encoder, load_encoder
from assay.cli import main
from assay.errors import UserError
from assay.training.export import tokenizer_of

LETTERS = [np.array([7, 7, 7, 3, 7]), np.array([3, 1, 7, 3, 9])]
"""7 five times, 3 three times, 1 and 9 once."""


def llama(vocab_size=64, layers=3):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with a tokenizer of bytes, and a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from assay.data.tokenizers.bpe import add_separator, save

    place = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    add_separator(backend)
    save(backend, place)
    llama(257).save_pretrained(place)
    (place / "text.txt").write_text("the cat sat on the mat and the dog sat on the cat; " * 20)
    return place


@pytest.fixture
def assay(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", "analyse", "function-tokens", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        lines = [line for line in written.err.splitlines() if line and "Loading weights" not in line]
        return left.value.code or 0, written.out, lines

    return run


def test_counts_by_hand():
    counts = count_tokens(LETTERS)
    assert counts.ids.tolist() == [7, 3, 1, 9]
    assert counts.counts.tolist() == [5, 3, 1, 1]
    assert counts.documents.tolist() == [1, 1, 0.5, 0.5]
    np.testing.assert_allclose(counts.mass, [0.5, 0.8, 0.9, 1])
    np.testing.assert_allclose(counts.surprise, -np.log([0.5, 0.3, 0.1, 0.1]))


@pytest.mark.parametrize(
    ("mass", "expected"), [(0.4, [7]), (0.5, [7]), (0.6, [7, 3]), (0.8, [7, 3]), (0.81, [7, 3, 1]), (1, [7, 3, 1, 9])]
)
def test_the_split_is_the_shortest_prefix_that_reaches_the_mass(mass, expected):
    assert function_tokens(count_tokens(LETTERS), mass).tolist() == expected


def test_counts_are_those_of_a_counter_whatever_the_order_of_documents():
    rng = np.random.default_rng(0)
    documents = [rng.geometric(0.1, rng.integers(1, 50)) for _ in range(30)]
    counts, turned = count_tokens(documents), count_tokens(documents[::-1])
    known = Counter(int(id) for document in documents for id in document)
    assert list(zip(counts.ids, counts.counts, strict=True)) == sorted(known.items(), key=lambda e: (-e[1], e[0]))
    for field in ("ids", "counts", "documents"):
        np.testing.assert_array_equal(getattr(counts, field), getattr(turned, field))
    assert counts.documents[0] == np.mean([counts.ids[0] in document for document in documents])


@pytest.mark.parametrize("mass", [0.2, 0.5, 1.0])
def test_group_losses_make_up_the_loss_that_transformers_has(mass):
    model, rng = llama(), np.random.default_rng(1)
    documents = [rng.geometric(0.2, 40) % 60 for _ in range(4)]
    counts = count_tokens(documents)
    seen = observe(model, documents, separator=63, length=40)
    groups = class_losses(seen, counts, function_tokens(counts, mass))
    labels = [torch.tensor([[-100, -100, *document[1:]]]) for document in documents]
    ids = [torch.tensor([[63, *document]]) for document in documents]
    with torch.no_grad():
        expected = np.mean([model(a, labels=b).loss.item() for a, b in zip(ids, labels, strict=True)])
    assert sum(group.count for group in groups) == 4 * 39
    assert sum(group.count * group.loss for group in groups) / (4 * 39) == pytest.approx(expected, rel=1e-5)
    assert sum(group.share for group in groups) == pytest.approx(1)
    if mass == 1:
        assert [group.count for group in groups] == [4 * 39, 0, 0, 0]


def test_classes_of_positions_by_hand():
    documents = [np.array([7, 3, 7, 7, 1])]
    counts = count_tokens(documents)
    seen = observe(llama(), documents, separator=63)
    groups = class_losses(seen, counts, np.array([7]))
    assert {(group.current, group.following): group.count for group in groups} == {
        ("function", "function"): 1,
        ("function", "content"): 2,
        ("content", "function"): 1,
        ("content", "content"): 0,
    }
    loss = {(group.current, group.following): group.loss for group in groups}
    assert loss["function", "content"] == pytest.approx(seen.loss[[0, 3]].mean().item())
    frequency = {(group.current, group.following): group.frequency_loss for group in groups}
    assert frequency["content", "function"] == pytest.approx(-np.log(0.6))


def test_states_and_losses_are_those_of_output_hidden_states():
    """Pieces of 6 tokens, each behind a separator; the residual stream behind layer 1 is hidden state 2."""
    model = llama()
    document = np.arange(1, 16)
    seen = observe(model, [document], separator=63, length=6, tokens=14, layer=1)
    pieces = [document[:6], document[6:12], document[12:14]]
    assert seen.inputs.tolist() == [*range(1, 6), *range(7, 12), 13]
    assert seen.targets.tolist() == [*range(2, 7), *range(8, 13), 14]
    with torch.no_grad():
        out = [model(torch.tensor([[63, *piece]]), output_hidden_states=True) for piece in pieces]
    torch.testing.assert_close(seen.states, torch.cat([o.hidden_states[2][0, 1:-1] for o in out]))
    loss = [
        F.cross_entropy(o.logits[0, 1:-1], torch.tensor(p[1:]), reduction="none")
        for o, p in zip(out, pieces, strict=True)
    ]
    torch.testing.assert_close(seen.loss, torch.cat(loss))


def test_one_hot_states_give_every_token_its_own_feature():
    inputs = torch.tensor([4, 0, 4, 2, 4, 2])
    encoder = Encoder(torch.eye(5), torch.zeros(5))
    graph = feature_graph(inputs, F.one_hot(inputs, 5).float(), encoder)
    assert graph.ids.tolist() == [4, 2, 0]
    assert graph.degree.tolist() == [1, 1, 1]
    torch.testing.assert_close(graph.coverage, torch.tensor([1 / 3, 2 / 3, 1]))


def test_the_graph_is_that_of_sets():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 40, (3000,), generator=generator).square() % 37
    states = torch.randn(3000, 6, generator=generator)
    encoder = Encoder(torch.randn(6, 50, generator=generator), torch.full((50,), -6.0))
    graph = feature_graph(inputs, states, encoder)
    edges: dict[int, set[int]] = {}
    for id, row in zip(inputs.tolist(), (states @ encoder.weight - 6 > 0).tolist(), strict=True):
        edges.setdefault(id, set()).update(j for j, on in enumerate(row) if on)
    order = [id for id, _ in sorted(Counter(inputs.tolist()).items(), key=lambda entry: (-entry[1], entry[0]))]
    assert graph.ids.tolist() == order
    assert graph.degree.tolist() == [len(edges[id]) for id in order]
    every = set().union(*edges.values())
    shares = [len(set().union(*(edges[id] for id in order[: k + 1]))) / len(every) for k in range(len(order))]
    torch.testing.assert_close(graph.coverage, torch.tensor(shares))
    assert shares[-1] == 1


def test_equal_occurrences_take_away_what_frequency_alone_gives():
    """Features that do not depend on the token: the frequent one has the larger degree, but not at equal numbers."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.cat((torch.zeros(4000), torch.arange(1, 101).repeat_interleave(20))).long()
    states = torch.randn(6000, 8, generator=generator)
    encoder = Encoder(torch.randn(8, 200, generator=generator), torch.full((200,), -6.0))
    degree = feature_graph(inputs, states, encoder).degree
    assert degree[0] > 2 * degree[1:].double().mean()
    function = np.arange(0, 50)
    ours, others = equal_degrees(inputs, states, encoder, function, occurrences=20)
    assert ours == pytest.approx(others, rel=0.1)


def test_encoders_by_hand():
    states = torch.tensor([[1.0, 2.0, 3.0]])
    arguments = (torch.eye(3), torch.tensor([0.0, -3.0, -1.0]))
    assert Encoder(*arguments)(states).tolist() == [[1, 0, 2]]
    assert Encoder(*arguments, threshold=torch.full((3,), 1.5))(states).tolist() == [[0, 0, 2]]
    assert Encoder(*arguments, k=1)(states).tolist() == [[0, 0, 2]]
    assert Encoder(*arguments, centre=torch.tensor([0.0, -2, 0]))(states).tolist() == [[1, 1, 2]]


def test_a_fitted_autoencoder_finds_directions_that_are_there():
    """Sparse sums of 12 directions in 16 dimensions: what is left is little, and no more features act than k."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(12, 16, generator=generator), dim=1)
    active = torch.rand(2000, 12, generator=generator) < 0.1
    states = active * (1 + torch.rand(2000, 12, generator=generator)) @ directions + 5
    encoder, left = fit_encoder(states, features=32, k=4, steps=600)
    assert left < 0.1
    assert (encoder(states) > 0).sum(1).max() <= 4


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_a_file_gives_the_encoder_that_was_written(tmp_path, kind):
    tensors = {
        "W_enc": torch.randn(4, 6),
        "b_enc": torch.randn(6),
        "b_dec": torch.randn(4),
        "threshold": torch.rand(6),
    }
    path = tmp_path / f"sae.{kind}"
    if kind == "npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        save_file(tensors, path)
    encoder, states = load_encoder(path), torch.randn(3, 4)
    values = states @ tensors["W_enc"] + tensors["b_enc"]
    torch.testing.assert_close(encoder(states), values * (values > tensors["threshold"]))
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "topk", "k": 2, "apply_b_dec_to_input": True}))
    values = ((states - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]).relu()
    lowest = values.sort(descending=True).values[:, 2:3]
    torch.testing.assert_close(load_encoder(path)(states), values * (values > lowest))


def test_the_command_prints_what_python_computes(assay, folder):
    text = folder / "text.txt"
    options = ["--text", text, "--features", 64, "--occurrences", 10, "--layer", 1]
    status, out, err = assay(folder, *options, "--json")
    assert (status, err) == (0, [])
    document = json.loads(out)
    ids = tokenizer_of(folder).encode(text.read_text())
    counts = count_tokens([ids])
    assert document["function_types"] == len(function_tokens(counts))
    assert [row["token"] for row in document["tokens"][:2]] == [" ", "t"]
    assert sum(group["count"] for group in document["losses"]) == document["positions"]
    assert document["features"]["coverage"]["1"] * document["features"]["active"] == document["tokens"][0]["degree"]
    status, out, err = assay(folder, *options)
    assert (status, err) == (0, [])
    assert "function → content" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--mass", "0"], "error: mass 0 is no share of the tokens"),
        (["--layer", "1"], "error: --layer needs features to look at"),
        (["--layer", "3", "--features", "8"], "error: there is no layer 3; the model has the layers 0 to 2"),
        (["--length", "1"], "error: length 1 leaves nothing to predict"),
        (["--features", "8", "--occurrences", "5000"], "error: no token occurs 5000 times"),
        (["--features", "8", "--sae", "no.npz"], "error: --sae and --features exclude each other"),
        (["--sae", "no.npz"], "error: there is no autoencoder file 'no.npz'"),
    ],
)
def test_mistakes_are_one_line(assay, folder, arguments, reason):
    status, out, err = assay(folder, "--text", folder / "text.txt", *arguments)
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith(reason)


def test_mistakes_in_files_are_one_line(assay, folder, tmp_path):
    empty, wrong, narrow = tmp_path / "empty.txt", tmp_path / "wrong.safetensors", tmp_path / "narrow.npz"
    empty.write_text("")
    wrong.write_bytes(b"no tensors")
    np.savez(narrow, W_enc=np.ones((4, 6)), b_enc=np.zeros(6))
    for arguments, reason in [
        (["--text", empty], "the text has no tokens"),
        (["--text", tmp_path / "none.txt"], "no such file or folder"),
        (["--text", folder / "text.txt", "--sae", wrong], "cannot be read as .safetensors or .npz"),
        (["--text", folder / "text.txt", "--sae", narrow], "the autoencoder reads 4 dimensions"),
    ]:
        status, out, err = assay(folder, *arguments)
        assert (status, out, len(err)) == (2, "", 1)
        assert err[0].startswith("error: ")
        assert reason in err[0]


def test_an_unknown_architecture_is_not_read(tmp_path):
    save_file({"W_enc": torch.ones(2, 3), "b_enc": torch.zeros(3)}, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text('{"architecture": "gated"}')
    with pytest.raises(UserError, match="'gated' are not read; standard, jumprelu, topk are"):
        load_encoder(tmp_path / "sae.safetensors")
