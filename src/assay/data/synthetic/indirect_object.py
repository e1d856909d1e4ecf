"""Indirect objects: sentences whose last word is the name that occurred once.

    clean       When A and B went to the store, B gave a book to        → A
    corrupted   When A and B went to the store, A gave a book to        → B

A prompt and its corruption differ in one token, the second mention of the subject, which turns the answer around. One
sentence serves all pairs of a set and each name is one token, so the same position has the same role in all of them.

Wang et al., 2022, arXiv:2211.00593 (the task).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from assay.data.tokenizers import Tokenizer
from assay.errors import UserError

NAMES = (
    *("Mary", "John", "Anna", "Paul", "Sarah", "James", "Emma", "Mark", "Alice", "David", "Laura", "Robert"),
    *("Lucy", "Tom", "Kate", "Peter", "Jane", "Simon", "Susan", "Michael", "Lisa", "Daniel", "Amy", "Kevin"),
)
SENTENCES = (
    "When{a} and{b} went to the store,{subject} gave a book to",
    "After{a} and{b} came back from school,{subject} handed the keys to",
    "While{a} and{b} were working at the office,{subject} offered some coffee to",
    "Then{a} and{b} met in the garden, and{subject} showed a picture to",
    "When{a} and{b} arrived at the station,{subject} passed the tickets to",
    "Because{a} and{b} had a party at home,{subject} brought a cake for",
)


@dataclasses.dataclass(frozen=True)
class PromptPair:
    """Texts. ``answer`` continues ``clean`` and ``distractor`` continues ``corrupted``, spaces included."""

    clean: str
    corrupted: str
    answer: str
    distractor: str


def indirect_objects(seed: int, pairs: int, tokenizer: Tokenizer) -> list[PromptPair]:
    """``pairs`` prompt pairs about different couples, in a sentence and with names that ``seed`` draws.

    Which of the two names comes first is drawn as well. Raises ``UserError`` if there are not that many couples, or
    if ``tokenizer`` makes one token of fewer than two names.
    """
    spaced = [f" {name}" for name in NAMES]
    names = [name for name, ids in zip(spaced, tokenizer.encode_batch(spaced), strict=True) if len(ids) == 1]
    if len(names) < 2:
        raise UserError("the tokenizer splits names into several tokens; the indirect-object task needs whole ones")
    couples = [(a, b) for a in names for b in names if a < b]
    if not 1 <= pairs <= len(couples):
        raise UserError(f"{pairs} pairs asked for; {len(names)} names make 1 to {len(couples)}")
    rng = np.random.default_rng(seed)
    sentence = SENTENCES[rng.integers(len(SENTENCES))]
    found = []
    for index in rng.permutation(len(couples))[:pairs]:
        a, b = rng.permutation(couples[index]).tolist()
        subject, other = rng.permutation([a, b]).tolist()
        clean, corrupted = (sentence.format(a=a, b=b, subject=name) for name in (subject, other))
        found.append(PromptPair(clean, corrupted, other, subject))
    return found
