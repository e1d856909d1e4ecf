"""Mixtures: exact shares, each corpus in its own order, and runs that read them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from assay.data import DataConfig
from assay.data.corpora.mixture import Mixture
from assay.data.mixing import Allotment
from assay.data.windows import prepare
from assay.errors import Interrupted, UserError
from assay.training.config import RunConfig
from assay.training.loop import train
from assay.training.run_directory import RunDirectory

weights = st.lists(st.integers(0, 30), min_size=2, max_size=6).filter(any)


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two corpora, of lower and of upper case."""
    random = np.random.default_rng(0)
    for name, first in (("lower", 97), ("upper", 65)):
        (tmp_path / name).mkdir()
        for number in range(40):
            letters = random.integers(first, first + 26, 300).astype(np.uint8).tobytes()
            (tmp_path / name / f"{number:02}.txt").write_bytes(letters)
    return [f"text:{tmp_path / name}" for name in ("lower", "upper")]


def mixed(two: list[str], shares: list[float], **fields: Any) -> DataConfig:
    corpus = {"name": "mixture", "corpora": two, "shares": shares}
    return DataConfig.parse({"corpus": corpus, "sequence_length": 16, "validation": 0.2, **fields})


class TestAllotment:
    @given(weights, st.integers(1, 64))
    def test_a_batch_is_within_a_row_of_each_share_and_whole_periods_are_exact(self, weights, batch_size):
        allotment = Allotment(weights, batch_size)
        assume(allotment.period <= 500)
        shares = [Fraction(weight, sum(weights)) for weight in weights]
        for step in range(allotment.period):
            before, after = allotment.before(step), allotment.before(step + 1)
            assert sum(after) - sum(before) == batch_size
            for rows, share, total in zip(np.subtract(after, before), shares, after, strict=True):
                assert abs(int(rows) - batch_size * share) < 1
                assert abs(total - (step + 1) * batch_size * share) <= 1
        whole = [allotment.period * batch_size * share for share in shares]
        assert allotment.before(allotment.period) == whole
        assert allotment.before(10**12 * allotment.period + 1) == [
            10**12 * int(rows) + first for rows, first in zip(whole, allotment.before(1), strict=True)
        ]

    def test_replay_of_a_twentieth(self):
        allotment = Allotment([0.95, 0.05], 16)
        replayed = np.diff([allotment.before(step)[1] for step in range(6)])
        assert sorted(replayed) == [0, 1, 1, 1, 1]
        assert allotment.before(300_000) == [4_560_000, 240_000]

    def test_decimals_are_exact(self):
        assert Allotment([0.1, 0.2, 0.7], 10).before(1) == [1, 2, 7]
        assert Allotment([0.1, 0.2, 0.7], 10).period == 1


class TestMixedData:
    def test_each_corpus_is_read_as_it_would_be_alone(self, two):
        made = prepare(mixed(two, [0.7, 0.3]))
        alone = [
            prepare(DataConfig.parse({"corpus": name, "sequence_length": 16, "validation": 0.2})) for name in two
        ]
        rows = torch.cat([made.batch(step, seed=5, batch_size=8, sequence_length=16) for step in range(60)])
        lower = ((rows >= 97) & (rows < 123)).sum(1) > ((rows >= 65) & (rows < 91)).sum(1)
        counts = Allotment([0.7, 0.3], 8).before(60)
        for data, found, count in zip(alone, (rows[lower], rows[~lower]), counts, strict=True):
            assert len(found) == count
            expected = data.rows(np.arange(count), seed=5, sequence_length=16)
            assert torch.equal(found, expected)

    def test_equal_shares_are_what_hugging_face_interleaves(self, two):
        datasets = pytest.importorskip("datasets")
        made = prepare(mixed(two, [1, 1]))
        members = [
            datasets.Dataset.from_dict({"ids": data.rows(np.arange(30), seed=2, sequence_length=16).tolist()})
            for data in made.domains.values()
        ]
        expected = torch.tensor(datasets.interleave_datasets(members)["ids"])
        rows = torch.cat([made.batch(step, seed=2, batch_size=2, sequence_length=16) for step in range(30)])
        assert torch.equal(rows, expected)

    def test_ranks_share_the_batch(self, two):
        made = prepare(mixed(two, [0.5, 0.5]))
        whole = made.batch(3, seed=1, batch_size=8, sequence_length=16)
        for rank in range(4):
            part = made.batch(3, seed=1, batch_size=8, sequence_length=16, rank=rank, world=4)
            assert torch.equal(part, whole[rank::4])
            assert ((part >= 97) & (part < 123)).any(1).sum() == 1

    def test_all_of_one_corpus_is_that_corpus(self, two):
        made = prepare(mixed(two, [0, 1]))
        alone = prepare(DataConfig.parse({"corpus": two[1], "sequence_length": 16, "validation": 0.2}))
        options = {"seed": 3, "batch_size": 4, "sequence_length": 16}
        assert torch.equal(made.batch(7, **options), alone.batch(7, **options))
        assert list(made.domains) == two
        np.testing.assert_array_equal(made.domains[two[1]].validation, alone.validation)

    def test_the_fingerprint_is_of_members_and_shares(self, two):
        prints = [prepare(mixed(two, shares)).fingerprint for shares in ([1, 1], [1, 2], [0.5, 0.5], [1, 1])]
        assert prints[0] == prints[3]
        assert len(set(prints)) == 3

    def test_a_trained_tokenizer_learns_from_the_training_texts_of_all(self, two):
        made = prepare(mixed(two, [1, 1], tokenizer="bpe:400"))
        merged = {made.tokenizer.decode([id]) for id in range(256, made.vocab_size - 1)}
        assert any(text.islower() for text in merged)
        assert any(text.isupper() for text in merged)
        assert int(made.train.max()) < made.vocab_size
        assert len(made.train) == sum(len(domain.train) for domain in made.domains.values())


class TestRuns:
    def table(self, two: list[str], **training: Any) -> dict[str, Any]:
        return {
            "model": {"depth": 1, "hidden_size": 32, "num_heads": 2},
            "data": {**mixed(two, [0.75, 0.25]).dump(), "batch_size": 4, "eval_bytes": 512},
            "training": {"tokens": 12 * 4 * 16, "evaluations": 3, "compile": False, **training},
        }

    def test_the_metric_is_the_mean_over_the_domains(self, two, tmp_path):
        summary = train(self.table(two), out=tmp_path / "run")
        rows = [row for row in RunDirectory(tmp_path / "run").metrics() if "bits_per_byte" in row]
        assert len(rows) == 3
        for row in rows:
            assert list(row["domains"]) == two
            assert row["bits_per_byte"] == pytest.approx(sum(row["domains"].values()) / 2)
        assert summary.bits_per_byte == rows[-1]["bits_per_byte"]

    def test_a_run_that_was_stopped_ends_as_one_that_was_not(self, two, tmp_path):
        class AtOnce:
            def is_set(self) -> bool:
                return True

        whole = train(self.table(two), out=tmp_path / "whole")
        with pytest.raises(Interrupted):
            train(self.table(two), out=tmp_path / "cut", stop=AtOnce())
        resumed = train(self.table(two), out=tmp_path / "cut", resume=True)
        assert resumed.bits_per_byte == whole.bits_per_byte
        first, second = (
            (tmp_path / name / "checkpoint" / "model.safetensors").read_bytes() for name in ("whole", "cut")
        )
        assert first == second

    def test_one_corpus_has_no_domains(self, two, tmp_path):
        table = self.table(two)
        table["data"]["corpus"] = two[0]
        train(table, out=tmp_path / "run")
        assert not any("domains" in row for row in RunDirectory(tmp_path / "run").metrics())

    def test_the_configuration_survives_json(self, two):
        config = RunConfig.parse(self.table(two))
        plain = json.loads(json.dumps(config.dump()))
        assert RunConfig.parse(plain) == config


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"corpora": ["python-stdlib"]}, "option corpora=.*: a mixture holds two corpora or more"),
        ({"corpora": ["python-stdlib", "txt:a"]}, r"unknown corpus 'txt'; nearest: text \(they are written .*\)$"),
        ({"corpora": ["python-stdlib", "text:a"], "shares": [1, -1]}, "shares=.*greater than or equal to 0"),
        ({}, "needs the option 'corpora'"),
    ],
)
def test_options_that_cannot_be_used(corpus, message):
    with pytest.raises(UserError, match=message) as caught:
        DataConfig.parse({"corpus": {"name": "mixture", **corpus}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpora": ("python-stdlib", "text:a"), "shares": (1.0,)}, "2 corpora and 1 shares; give one each"),
        ({"corpora": ("python-stdlib", "text:a"), "shares": (0.0, 0.0)}, "all shares are 0"),
        ({"corpora": ("text:a", "text:a")}, "names 'text:a' twice"),
        (
            {"corpora": ("text:a", {"name": "mixture", "corpora": ["python-stdlib", "text:b"]})},
            "holds a mixture; name the corpora of both in one",
        ),
    ],
)
def test_members_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        Mixture(**options)


def test_its_documents_are_those_of_the_members(two):
    made = Mixture(corpora=tuple(two))
    names = [document.name for document in made.documents()]
    assert len(names) == len(set(names)) == 80
    assert len(made.files()) == 80


def test_an_order_needs_one_corpus_to_train_on(two):
    with pytest.raises(
        UserError, match=r"data.order='uniform' needs one corpus to train on; give the others shares of 0"
    ):
        prepare(mixed(two, [1, 1], order="uniform"))
    options = {"seed": 2, "batch_size": 4, "sequence_length": 16}
    order = {"name": "ascending", "tokens": 2000}
    made = prepare(mixed(two, [1, 0], order=order))
    fields = {"sequence_length": 16, "validation": 0.2, "order": order}
    alone = prepare(DataConfig.parse({"corpus": two[0], **fields}))
    assert torch.equal(made.batch(3, **options), alone.batch(3, **options))
    assert made.fingerprint != prepare(mixed(two, [1, 0])).fingerprint
