"""nDCG by hand and against scikit-learn, embeddings that padding leaves alone, choices, and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from assay.analysis.checkpoint_selection import choose, embed, ndcg, retrieval_score, score, tune_retriever
from assay.cli import main
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.training.loop import train


def ranked(*relevance: float) -> float:
    """nDCG@10 of relevances in the order of their ranks."""
    scores = torch.arange(len(relevance), 0, -1, dtype=torch.float64)
    return ndcg(scores[None], torch.tensor([relevance], dtype=torch.float64)).item()


def test_ndcg_of_worked_numbers() -> None:
    assert ranked(0, 1, 0, 1, 0) == pytest.approx(0.650921, abs=1e-6)
    assert ranked(1, 1, 0, 0) == pytest.approx(1)
    assert ranked(3, 2, 1) == pytest.approx(1)
    assert ranked(*[0] * 10, 1) == 0
    assert ranked(0, 0) == 0
    assert ranked(1, *[0] * 9, 1) == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_ndcg_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 25, generator=generator, dtype=torch.float64)
    relevance = torch.randint(0, 4, (40, 25), generator=generator).double()
    ours = ndcg(scores, relevance)
    theirs = [ndcg_score(r[None], s[None], k=10) for r, s in zip(relevance.numpy(), scores.numpy(), strict=True)]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-12)
    torch.testing.assert_close(ndcg(scores.exp() * 3, relevance), ours)


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    config = ModelConfig.parse({"depth": 2, "hidden_size": 32, "num_heads": 2, "vocab_size": 40, "max_length": 16})
    return Decoder(config).eval()


def texts(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 40, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def test_padding_changes_no_embedding(model: Decoder) -> None:
    batch = texts(3, 12, 7)
    together = embed(model, batch)
    alone = torch.cat([embed(model, [text]) for text in batch])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    mean = model.hidden(batch[0][None])[0].mean(0)
    torch.testing.assert_close(together[0], mean / mean.norm(), rtol=1e-5, atol=1e-6)


def test_a_query_that_is_its_passage_is_found(model: Decoder) -> None:
    same = [(text, text) for text in texts(*[8] * 20)]
    assert retrieval_score(model, same) == pytest.approx(1)
    shifted = list(zip([q for q, _ in same], [p for _, p in same[1:] + same[:1]], strict=True))
    assert retrieval_score(model, shifted) < 0.7


def test_tuning_learns_to_retrieve_and_leaves_the_checkpoint_alone(model: Decoder) -> None:
    """A passage is its query with every token moved by one: a mapping that a fresh network does not know."""
    pairs = [(text, (text + 17) % 39 + 1) for text in texts(*[6] * 64)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    untuned = score(model, pairs[:48], pairs[48:56], pairs[56:], steps=0, seeds=3)
    tuned = score(model, pairs[:48], pairs[48:56], pairs[56:], steps=60, seeds=2, lr=3e-3)
    assert untuned.choosing == retrieval_score(model, pairs[48:56])
    assert untuned.spread == 0 < tuned.spread
    assert tuned.choosing + tuned.held_out > untuned.choosing + untuned.held_out + 0.2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    once, again = (tune_retriever(model, pairs, steps=3, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in once.items())


STEPS = [100, 200, 300, 400, 500]


def test_the_best_retriever_before_the_least_loss() -> None:
    found = choose(STEPS, [5, 4, 3, 2, 1], [0.1, 0.3, 0.5, 0.4, 0.2])
    assert (found.by_score, found.by_loss, found.lead) == (2, 4, 200)
    assert found.regret == pytest.approx(0.3)
    assert found.correlation == pytest.approx(0.3)
    assert found.late_correlation == pytest.approx(-1)


def test_scores_that_follow_the_loss_regret_nothing() -> None:
    losses = [5.0, 3.0, 4.0, 1.0, 2.0]
    found = choose(STEPS, losses, [-loss for loss in losses])
    assert (found.regret, found.lead, found.correlation) == (0, 0, pytest.approx(1))
    alone = choose([100], [1.0], [0.5])
    assert (alone.regret, alone.lead) == (0, 0)
    assert math.isnan(alone.correlation)


def test_the_earliest_within_the_spread_is_chosen() -> None:
    assert choose(STEPS, [5, 4, 3, 2, 1], [0.1, 0.48, 0.5, 0.49, 0.2], spread=0.03).by_score == 1
    assert choose(STEPS, [5, 4, 3, 2, 1], [0.1, 0.5, 0.5, 0.4, 0.2]).by_score == 1


@given(st.permutations(range(5)))
def test_the_order_of_checkpoints_does_not_matter(order: list[int]) -> None:
    losses, scores = [5.0, 4.0, 3.0, 2.0, 2.5], [0.1, 0.3, 0.5, 0.4, 0.2]
    found = choose([STEPS[i] for i in order], [losses[i] for i in order], [scores[i] for i in order])
    assert (STEPS[order[found.by_score]], STEPS[order[found.by_loss]]) == (300, 400)
    assert found.late_correlation == pytest.approx(choose(STEPS, losses, scores).late_correlation)


def test_the_best_of_ten_equals_is_too_good_by_its_luck() -> None:
    """Chosen scores exceed the truth by 1.5388 standard deviations, held-out ones by none."""
    generator = torch.Generator().manual_seed(0)
    chosen, held_out = [], []
    for _ in range(4000):
        noise, other = torch.randn(2, 10, generator=generator, dtype=torch.float64).tolist()
        place = choose(range(10), [0.0] * 10, noise).by_score
        chosen.append(noise[place])
        held_out.append(other[place])
    assert sum(chosen) / 4000 == pytest.approx(1.5388, abs=0.04)
    assert sum(held_out) / 4000 == pytest.approx(0, abs=0.06)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="2 steps, 1 losses and 2 scores: a choice needs one of each"):
        choose([1, 2], [0.1], [0.1, 0.2])
    with pytest.raises(UserError, match="0 steps"):
        choose([], [], [])


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selection")
    config = {
        "model": {"depth": 1, "hidden_size": 16, "num_heads": 1},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
        "training": {"tokens": 12 * 4 * 32, "keep": [0.25, 0.5, 1.0], "compile": False},
    }
    train(config, out=folder / "run")
    train(config, out=folder / "bare", values={"training.keep": []})
    pairs = [{"query": f"where is {n}?", "passage": f"{n} is at {n * 7}"} for n in range(32)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[str, str]]:
    def say(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["assay", "analyse", "checkpoint-selection", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        written = capsys.readouterr()
        return written.out, written.err

    return say


def test_the_command_scores_every_kept_checkpoint(run: Path, command: Callable[..., tuple[str, str]]) -> None:
    arguments = [run / "run", "--pairs", run / "pairs.jsonl"]
    found: dict[str, Any] = json.loads(command(*arguments, "--steps", 4, "--json")[0])
    rows, choice = found["checkpoints"], found["choice"]
    assert [row["step"] for row in rows] == [3, 6, 12]
    assert rows[-1]["bits_per_byte"] == json.loads((run / "run" / "summary.json").read_text())["bits_per_byte"]
    best = max(row["choosing"] for row in rows)
    assert rows[choice["by_score"]]["choosing"] >= best - max(row["spread"] for row in rows)
    held_out = [rows[choice[by]]["held_out"] for by in ("by_score", "by_loss")]
    assert found["held_out_regret"] == pytest.approx(held_out[0] - held_out[1])
    table, _ = command(*arguments, "--steps", 0)
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["000003", "000006", "000012"]
    assert "on held-out pairs" in table


@pytest.mark.parametrize(
    ("place", "content", "reason"),
    [
        ("bare", None, "has 0 kept checkpoints, and a choice needs 2; train with --set training.keep"),
        ("run", '{"query": "a", "passage": "b"}', "has 1 pairs; tuning, choosing and reporting need at least 16"),
        ("run", "no json", "line 1: no JSON"),
        ("run", '{"query": "a"}', "an object with the strings 'query' and 'passage' is needed"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, place: str, content: str | None, reason: str, command: Callable[..., tuple[str, str]]
) -> None:
    file = run / "pairs.jsonl"
    if content is not None:
        file = run / "wrong.jsonl"
        file.write_text(content)
    _, error = command(run / place, "--pairs", file)
    assert reason in error
    assert error.count("\n") == 1
