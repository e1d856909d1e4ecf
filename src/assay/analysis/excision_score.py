"""Excision Score: how alike two revisions of one document are, blind to what all three share.

    S = LCS(LCS(O, A), B), cut out of original O, reference A and prediction B
    in each region between tokens of S:  hits = |deleted_A ∩ deleted_B| + |LCS(inserted_A, inserted_B)|
    ES = 2 Σ hits / Σ (|deleted_A| + |inserted_A| + |deleted_B| + |inserted_B|),  1 if neither edits

The two pairwise subsequences stand for the longest one of three documents, which takes cubic time. A token of the
original within a region is deleted by a revision that does not keep it, an inserted one does not come from the
original; both by an LCS of the region. This F1 of edits is a reading: the paper's abstract fixes that what all three
share is cut out and the rest compared, not the measure of the rest.

Gruzinov, Sycheva, Barr, Bezzubov, 2025, arXiv:2510.21537.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

_TOKEN = re.compile(r"\n[^\S\n]*|\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Region:
    """What stands between two shared tokens, in each document."""

    original: tuple[str, ...]
    reference: tuple[str, ...]
    predicted: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ExcisionScore:
    """``hits`` are edits (deleted or inserted tokens) that the prediction shares with the reference.

    ``reference_edits`` and ``predicted_edits`` count those that each made, ``shared`` the tokens cut out;
    ``pairwise`` is 2 |LCS(A, B)| / (|A| + |B|), which does not look at the original.
    """

    hits: int
    reference_edits: int
    predicted_edits: int
    shared: int
    pairwise: float
    regions: tuple[Region, ...]

    @property
    def score(self) -> float:
        """The harmonic mean of precision and recall; 1 if neither revision edits anything."""
        edits = self.reference_edits + self.predicted_edits
        return 2 * self.hits / edits if edits else 1.0

    @property
    def precision(self) -> float:
        """The share of the prediction's edits that the reference has; 1 if it made none."""
        return self.hits / self.predicted_edits if self.predicted_edits else 1.0

    @property
    def recall(self) -> float:
        """The share of the reference's edits that the prediction has; 1 if there are none."""
        return self.hits / self.reference_edits if self.reference_edits else 1.0


def excision_score(original: str, reference: str, predicted: str) -> ExcisionScore:
    """The score of ``predicted`` as a revision of ``original`` that should be ``reference``."""
    return score_tokens(*map(tokens_of, (original, reference, predicted)))


def tokens_of(text: str) -> list[str]:
    """Words, single signs, and line breaks with the indentation after them; other blanks do not count."""
    return _TOKEN.findall(text)


def score_tokens(original: Sequence[str], reference: Sequence[str], predicted: Sequence[str]) -> ExcisionScore:
    """The same for documents that are cut into tokens already."""
    shared, regions = excise(original, reference, predicted)
    hits = reference_edits = predicted_edits = 0
    for region in regions:
        deleted, inserted = _edits(region.original, region.reference)
        deleted_too, inserted_too = _edits(region.original, region.predicted)
        hits += len(deleted & deleted_too) + len(common_subsequence(inserted, inserted_too))
        reference_edits += len(deleted) + len(inserted)
        predicted_edits += len(deleted_too) + len(inserted_too)
    both = len(reference) + len(predicted)
    pairwise = 2 * len(common_subsequence(reference, predicted)) / both if both else 1.0
    return ExcisionScore(hits, reference_edits, predicted_edits, shared, pairwise, regions)


def excise(
    original: Sequence[str], reference: Sequence[str], predicted: Sequence[str]
) -> tuple[int, tuple[Region, ...]]:
    """How many tokens all three share, and what is left between them, where that is anything.

    The beginning and the end that all three have in common go first, so that what is shared there cannot change how
    the rest is aligned. Each document then holds the shared tokens as late as they fit, by one rule for all three.
    """
    documents: list[Sequence[str]] = [original, reference, predicted]
    before = _agreement(documents)
    documents = [document[before:] for document in documents]
    after = _agreement([document[::-1] for document in documents])
    documents = [document[: len(document) - after] for document in documents]
    kept = [documents[0][i] for i, _ in common_subsequence(documents[0], documents[1])]
    kept = [kept[i] for i, _ in common_subsequence(kept, documents[2])]
    parts = zip(*(_between(document, kept) for document in documents), strict=True)
    return before + after + len(kept), tuple(Region(*part) for part in parts if any(part))


def common_subsequence(a: Sequence[T], b: Sequence[T]) -> list[tuple[int, int]]:
    """The places in ``a`` and ``b`` of a longest common subsequence.

    Rows of the usual table are integers whose bit j is 0 where the length grows at token j of ``b`` (Crochemore et
    al., 2001), so that n tokens against m take n additions of m bits.
    """
    places: dict[T, int] = {}
    for j, token in enumerate(b):
        places[token] = places.get(token, 0) | 1 << j
    row = every = (1 << len(b)) - 1
    rows = [row]
    for token in a:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & every
        rows.append(row)
    pairs: list[tuple[int, int]] = []
    i, j = len(a), len(b)
    while i and j:
        if rows[i] >> (j - 1) & 1:
            j -= 1
        elif not rows[i - 1] >> (j - 1) & 1:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _edits(original: Sequence[str], revision: Sequence[str]) -> tuple[set[int], list[str]]:
    """The places in ``original`` that ``revision`` does not keep, and its tokens that are not from there."""
    pairs = common_subsequence(original, revision)
    stayed, came = {i for i, _ in pairs}, {j for _, j in pairs}
    return set(range(len(original))) - stayed, [token for j, token in enumerate(revision) if j not in came]


def _agreement(documents: Sequence[Sequence[str]]) -> int:
    """With how many equal tokens all ``documents`` begin."""
    count = 0
    for tokens in zip(*documents, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


def _between(document: Sequence[str], kept: Sequence[str]) -> list[tuple[str, ...]]:
    """What ``document`` has before, between and after the tokens ``kept``, placed from its end."""
    parts: list[tuple[str, ...]] = []
    end = len(document)
    for token in reversed(kept):
        place = end - 1
        while document[place] != token:
            place -= 1
        parts.append(tuple(document[place + 1 : end]))
        end = place
    return [*parts, tuple(document[:end])][::-1]
