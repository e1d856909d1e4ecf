"""Function and content tokens: types by how often they occur."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from assay.errors import UserError


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Token types of a corpus, the most frequent first; of equally frequent ones the smaller id is first."""

    ids: Integer[np.ndarray, " types"]
    counts: Integer[np.ndarray, " types"]
    documents: Float[np.ndarray, " types"]
    """The share of documents that the type occurs in."""

    @property
    def mass(self) -> Float[np.ndarray, " types"]:
        """The share of all tokens that the type and all before it make up."""
        return self.counts.cumsum() / self.counts.sum()

    @property
    def surprise(self) -> Float[np.ndarray, " types"]:
        """−ln(count / all): the loss, in nats, of predicting the type from frequency alone."""
        return -np.log(self.counts / self.counts.sum())


def count_tokens(documents: Sequence[Integer[np.ndarray, " length"]]) -> TokenCounts:
    """Count token types over documents of ids. Raises ``UserError`` if there is no token."""
    if not sum(map(len, documents)):
        raise UserError("the text has no tokens; give a file or folder with some")
    types, counts = np.unique(np.concatenate(documents), return_counts=True)
    presence = np.zeros(len(types), np.int64)
    for document in documents:
        presence[np.searchsorted(types, np.unique(document))] += 1
    order = np.argsort(-counts, kind="stable")
    return TokenCounts(types[order], counts[order], presence[order] / len(documents))


def function_tokens(counts: TokenCounts, mass: float = 0.4) -> Integer[np.ndarray, " function"]:
    """The shortest prefix of the types that makes up the share ``mass`` of all tokens.

    Raises ``UserError`` for a mass that is not in (0, 1].
    """
    if not 0 < mass <= 1:
        raise UserError(f"mass {mass:g} is no share of the tokens; it must be above 0 and at most 1, e.g. 0.4")
    wanted = mass * int(counts.counts.sum()) * (1 - 1e-12)
    return counts.ids[: int(np.searchsorted(counts.counts.cumsum(), wanted)) + 1]


def membership(ids: Integer[np.ndarray, " n"], function: Integer[np.ndarray, " function"]) -> Bool[np.ndarray, " n"]:
    """Which of ``ids`` are function tokens."""
    return np.isin(ids, function)
