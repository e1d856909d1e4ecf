from __future__ import annotations

import pytest

from assay.data.synthetic.indirect_object import NAMES, SENTENCES, PromptPair, indirect_objects
from assay.data.tokenizers.bytes import Bytes
from assay.errors import UserError


class Words(Bytes):
    """One token for a text without a space inside, and for each name in ``whole`` with one before it."""

    def __init__(self, whole: tuple[str, ...] = NAMES) -> None:
        self.whole = {f" {name}" for name in whole}

    def encode_batch(self, texts):  # type: ignore[no-untyped-def]
        return [[0] if text in self.whole else [0, 0] for text in texts]


@pytest.mark.parametrize("seed", range(5))
def test_one_word_turns_the_answer_around(seed: int) -> None:
    pairs = indirect_objects(seed, 12, Words())
    for pair in pairs:
        clean, corrupted = (text.replace(",", "").split() for text in (pair.clean, pair.corrupted))
        ((old, new),) = [(a, b) for a, b in zip(clean, corrupted, strict=True) if a != b]
        assert (f" {old}", f" {new}") == (pair.distractor, pair.answer)
        for words, last in ((clean, pair.answer), (corrupted, pair.distractor)):
            counts = {name: words.count(name) for name in (pair.answer.strip(), pair.distractor.strip())}
            assert counts.pop(last.strip()) == 1
            assert list(counts.values()) == [2]
    couples = {frozenset((pair.answer, pair.distractor)) for pair in pairs}
    assert len(couples) == 12
    forms = {pair.clean.replace(pair.answer, "@").replace(pair.distractor, "@") for pair in pairs}
    assert len(forms) == 1


def test_both_orders_occur_and_seeds_differ() -> None:
    pairs = indirect_objects(0, 100, Words())
    first = [pair.clean.index(pair.answer) < pair.clean.index(pair.distractor) for pair in pairs]
    assert 25 < sum(first) < 75
    assert pairs == indirect_objects(0, 100, Words())
    assert len({indirect_objects(seed, 1, Words())[0] for seed in range(20)}) > 15


def test_every_sentence_is_one_sentence() -> None:
    for sentence in SENTENCES:
        text = sentence.format(a=" Mary", b=" John", subject=" John")
        assert text == " ".join(text.split())
        assert text.split()[-1] in ("to", "for")


def test_names_of_several_tokens_are_left_out() -> None:
    pairs = indirect_objects(0, 1, Words(("Mary", "Kevin")))
    assert {pairs[0].answer, pairs[0].distractor} == {" Mary", " Kevin"}
    assert isinstance(pairs[0], PromptPair)
    with pytest.raises(UserError, match="the tokenizer splits names into several tokens"):
        indirect_objects(0, 1, Bytes())


@pytest.mark.parametrize("count", [0, 2])
def test_more_pairs_than_couples(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} pairs asked for; 2 names make 1 to 1"):
        indirect_objects(0, count, Words(("Mary", "Kevin")))
