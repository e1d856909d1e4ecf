"""Orders of documents: permutations of one sample, whatever the order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.data import DataConfig
from assay.data.corpora import Document
from assay.data.order import Documents, orders
from assay.data.windows import prepare
from assay.errors import UserError
from assay.training.config import RunConfig
from assay.training.loop import train

SEPARATOR = 0


def documents(lengths: list[int], texts: list[str] | None = None) -> Documents:
    """Documents whose tokens are their own number, counted from 1, behind a separator."""
    ids = np.concatenate([[SEPARATOR, *[number] * (length - 1)] for number, length in enumerate(lengths, 1)])
    read = [Document(str(number), text) for number, text in enumerate(texts or [], 1)]
    return Documents(ids, SEPARATOR, repr((lengths, texts)), lambda: iter(read))


def read_epoch(order: Any, *, seed: int = 0, epoch: int = 0, sequence_length: int = 1) -> list[int]:
    """The places that an epoch's windows predict, in turn."""
    windows = np.arange(order.tokens // sequence_length)
    return order.places(windows, seed=seed, epoch=epoch, sequence_length=sequence_length)[:, :-1].flatten().tolist()


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=20)


@given(lengths, st.integers(0, 100), st.integers(0, 3), st.integers(1, 5))
def test_an_epoch_reads_each_token_once_and_documents_whole(lengths, seed, epoch, sequence_length):
    made = documents(lengths)
    order = orders.build("uniform", documents=made)
    places = read_epoch(order, seed=seed, epoch=epoch)
    assert sorted(places) == list(range(sum(lengths)))
    breaks = [at for at, (one, two) in enumerate(itertools.pairwise(places), 1) if two != one + 1]
    assert {places[at] for at in [0, *breaks]} <= set(made.starts.tolist())
    cut = read_epoch(order, seed=seed, epoch=epoch, sequence_length=min(sequence_length, sum(lengths)))
    assert cut == places[: len(cut)]


@given(lengths, st.integers(1, 60), st.integers(0, 50))
def test_all_orders_read_the_same_sample(lengths, tokens, seed):
    texts = [chr(96 + length) * 3 + "é" * (length % 3) for length in lengths]
    made = documents(lengths, texts)
    read = []
    for name in ("uniform", "ascending", "descending"):
        options = {} if name == "uniform" else {"quality": "clean"}
        read.append(read_epoch(orders.build(name, {**options, "tokens": tokens}, documents=made), seed=seed))
    assert sorted(read[0]) == sorted(read[1]) == sorted(read[2])
    assert len(set(read[0])) == len(read[0]) == min(tokens, sum(lengths))


def test_ascending_is_by_score_and_descending_its_reverse():
    texts = ["a#", "ab", "##", "a###", "abc"]
    made = documents([2] * 5, texts)
    numbers = {}
    for name in ("ascending", "descending"):
        order = orders.build(name, {"quality": "clean"}, documents=made)
        numbers[name] = [place // 2 + 1 for place in read_epoch(order, seed=4)[::2]]
    assert numbers["ascending"][:3] == [3, 4, 1]
    assert set(numbers["ascending"][3:]) == {2, 5}
    assert numbers["descending"] == numbers["ascending"][::-1]


def test_equals_are_in_an_order_of_the_seeds_and_the_epochs():
    made = documents([1] * 30, ["same"] * 30)
    order = orders.build("ascending", {"quality": "clean"}, documents=made)
    drawn = {tuple(read_epoch(order, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(drawn) == 4
    assert read_epoch(order, seed=1) == read_epoch(
        orders.build("ascending", {"quality": "clean"}, documents=made), seed=1
    )


def test_a_run_reads_one_epoch_from_the_worst_to_the_best(notes):
    """Without ``tokens`` the budget of the run is the sample."""
    table = {
        "data": {"corpus": f"text:{notes}", "order": "ascending", "sequence_length": 16, "batch_size": 4},
        "training": {"tokens": 64 * 20 + 63},
    }
    config = RunConfig.parse(table)
    assert config.data.order.options["tokens"] == 64 * 20
    made = prepare(config.data)
    assert made.windows(16) == 80
    rows = torch.cat([made.batch(step, seed=0, batch_size=4, sequence_length=16) for step in range(20)])
    assert torch.equal(rows[:-1, -1], rows[1:, 0])
    assert torch.equal(made.batch(20, seed=0, batch_size=4, sequence_length=16)[0, :1], rows[-1, -1:])
    scores = made.order.scores[np.argsort(made.order.documents.starts)]
    spans = made.order.places(np.arange(80), seed=0, epoch=0, sequence_length=16)[:, :-1].flatten()
    levels = scores[np.searchsorted(made.order.documents.starts, spans, side="right") - 1]
    assert (np.diff(levels) >= 0).all()
    assert levels[0] < levels[-1]


def test_the_fingerprint_is_of_order_and_scores(notes):
    base = {"corpus": f"text:{notes}", "sequence_length": 16}
    given = ["shuffled", "uniform", "ascending", "descending", {"name": "ascending", "quality": "clean"}]
    given.append({"name": "uniform", "tokens": 500})
    prints = [prepare(DataConfig.parse({**base, "order": order})).fingerprint for order in given]
    assert len(set(prints)) == len(given)
    assert prints[0] == prepare(DataConfig.parse(base)).fingerprint


def test_a_run_in_order_goes_on_as_if_it_had_not_stopped(notes, tmp_path):
    table: dict[str, Any] = {
        "model": {"depth": 1, "hidden_size": 32, "num_heads": 2},
        "data": {"corpus": f"text:{notes}", "order": "ascending", "sequence_length": 16, "batch_size": 4},
        "training": {"tokens": 640, "evaluations": 1, "compile": False, "keep": [0.5]},
        "schedule": {"name": "constant", "warmup": 0.0},
    }
    whole = train(table, out=tmp_path / "whole")
    half = {"start.run": str(tmp_path / "whole" / "checkpoints" / "000005"), "data.order.tokens": 640}
    branch = train(table, out=tmp_path / "branch", values={**half, "training.tokens": 320, "training.keep": []})
    assert branch.bits_per_byte == whole.bits_per_byte


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("sorted", "order: unknown order 'sorted'"),
        ({"name": "uniform", "tokens": 0}, "order: order 'uniform', option tokens=0: input should be greater than 0"),
        ({"name": "ascending", "quality": "cleen"}, "unknown quality 'cleen'; nearest: clean"),
        ({"name": "ascending", "quality": "scores"}, "quality 'scores' needs its file: write 'scores:FILE'"),
        ({"name": "uniform", "quality": "clean"}, "order 'uniform' has no option 'quality'"),
    ],
)
def test_options_that_cannot_be_used(order, message):
    with pytest.raises(UserError) as caught:
        DataConfig.parse({"order": order})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
