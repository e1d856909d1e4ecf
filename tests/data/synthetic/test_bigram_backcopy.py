from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.synthetic.bigram_backcopy import BigramBackcopy
from assay.errors import UserError

TASK = BigramBackcopy.random(3, characters=12)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    characters=st.integers(4, 20),
    num_triggers=st.integers(0, 3),
    length=st.integers(1, 60),
)
def test_the_rule(seed: int, characters: int, num_triggers: int, length: int) -> None:
    task = BigramBackcopy.random(seed, characters=characters, num_triggers=num_triggers)
    ids = task.batch(np.random.default_rng(seed), 5, length)
    assert ids.shape == (5, length)
    assert len(task.triggers) == num_triggers
    for row in ids.tolist():
        assert row[0] == task.bos
        assert task.bos not in row[1:]
        for t in range(1, length):
            if row[t - 1] in task.triggers:
                assert row[t] == row[t - 2]
            elif t > 1:
                assert task.bigram[row[t - 1], row[t]] > 0
            else:
                assert row[t] not in task.triggers


def test_triggers_never_touch() -> None:
    """A trigger after a trigger would be a copy of the one before both, and so on back to the first character."""
    trigger = TASK.is_trigger(TASK.batch(np.random.default_rng(0), 200, 100))
    assert trigger.any()
    assert not (trigger[:, 1:] & trigger[:, :-1]).any()


def test_of_a_text() -> None:
    task = BigramBackcopy.of_text("aabab", num_triggers=1)
    np.testing.assert_allclose(task.unigram, [0.6, 0.4])
    np.testing.assert_allclose(task.bigram, [[1 / 3, 2 / 3], [1, 0]])
    assert (task.triggers, task.bos, task.vocab_size) == ((0,), 2, 3)
    ids = task.batch(np.random.default_rng(0), 4, 7)
    assert ids.tolist() == [[2, 1, 0, 1, 0, 1, 0]] * 4


def test_what_nothing_follows_in_a_text_is_followed_by_any_character() -> None:
    task = BigramBackcopy.of_text("aab", num_triggers=0)
    np.testing.assert_allclose(task.bigram[1], task.unigram)


def test_triggers_are_the_most_frequent() -> None:
    assert BigramBackcopy.of_text("xyzzyzz bzb", num_triggers=2).triggers == (4, 1)
    assert TASK.triggers == (0, 1, 2)


def test_characters_are_drawn_with_their_probabilities() -> None:
    ids = TASK.batch(np.random.default_rng(1), 4000, 40)
    before, after = ids[:, 1:-1].flatten(), ids[:, 2:].flatten()
    for character in range(3, 12):
        followers = after[before == character]
        found = torch.bincount(followers, minlength=12) / len(followers)
        error = np.sqrt(TASK.bigram[character] * (1 - TASK.bigram[character]) / len(followers))
        assert (np.abs(found.numpy() - TASK.bigram[character]) <= 4.5 * error + 1e-9).all()
    first = torch.bincount(ids[:, 1], minlength=12) / 4000
    p = TASK.unigram / TASK.unigram[3:].sum()
    assert (np.abs(first.numpy()[3:] - p[3:]) < 4.5 * np.sqrt(p[3:] / 4000)).all()


def test_next_token_is_the_rule() -> None:
    ids = TASK.batch(np.random.default_rng(2), 50, 30)
    probabilities = TASK.next_token(ids)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(50, 30).double())
    for row in range(50):
        for t in range(30):
            token, found = int(ids[row, t]), probabilities[row, t].numpy()
            if token == TASK.bos:
                assert not found[list(TASK.triggers)].any()
                np.testing.assert_allclose(found[3:12], TASK.unigram[3:] / TASK.unigram[3:].sum())
            elif token in TASK.triggers:
                assert found[int(ids[row, t - 1])] == 1
            else:
                np.testing.assert_allclose(found[:12], TASK.bigram[token])
            assert found[TASK.bos] == 0


def test_seeds() -> None:
    same, other = (BigramBackcopy.random(seed, characters=12) for seed in (3, 4))
    np.testing.assert_array_equal(same.bigram, TASK.bigram)
    assert (other.bigram != TASK.bigram).any()
    first, again = (TASK.batch(np.random.default_rng(5), 3, 9) for _ in range(2))
    assert torch.equal(first, again)


def test_too_few_characters() -> None:
    with pytest.raises(UserError, match="3 triggers need more than 2 different characters"):
        BigramBackcopy.of_text("abab")
