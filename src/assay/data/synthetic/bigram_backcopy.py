"""Bigram-Backcopy: a Markov chain of characters, with some after which the one before is copied.

    s_0 = BOS
    s_1 ~ p, triggers left out
    s_t = s_{t−2}               if s_{t−1} is a trigger
    s_t ~ P(· | s_{t−1})        else

p and P are frequencies of characters and of pairs of them, triggers the most frequent characters. One attention head
is needed after triggers and nowhere else.

Guo et al., 2024, arXiv:2410.13835.
"""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class BigramBackcopy:
    """Ids are 0 .. characters − 1, and BOS after them.

    Attributes:
        unigram: p, of each character.
        bigram: P, whose row a holds the probabilities of what follows a.
        triggers: ids of the triggers.
    """

    unigram: Float[np.ndarray, " characters"]
    bigram: Float[np.ndarray, "characters characters"]
    triggers: tuple[int, ...]

    @classmethod
    def of_text(cls, text: str, num_triggers: int = 3) -> Self:
        """The frequencies of a text, its characters numbered in the order of their code points.

        A character that nothing follows is followed by p. Raises ``UserError`` unless the text has more different
        characters than ``num_triggers``.
        """
        characters, ids = np.unique(np.array(list(text), dtype=str), return_inverse=True)
        pairs = np.zeros((len(characters), len(characters)))
        np.add.at(pairs, (ids[:-1], ids[1:]), 1)
        return cls.of_counts(np.bincount(ids, minlength=len(characters)), pairs, num_triggers)

    @classmethod
    def random(cls, seed: int, *, characters: int = 64, num_triggers: int = 3, concentration: float = 4.0) -> Self:
        """p falls as 1 / rank; each row of P is drawn from a Dirichlet distribution with mean p.

        The lower ``concentration``, the fewer characters follow each. Raises ``UserError`` unless there are more
        characters than triggers.
        """
        p = 1 / np.arange(1, characters + 1)
        rows = np.random.default_rng(seed).gamma(concentration * p / p.sum(), size=(characters, characters))
        return cls.of_counts(p, rows, num_triggers)

    @classmethod
    def of_counts(
        cls,
        single: Float[np.ndarray, " characters"],
        pairs: Float[np.ndarray, "characters characters"],
        num_triggers: int,
    ) -> Self:
        """From how often each character, and each pair, occurs. Raises ``UserError`` as the other two do."""
        if len(single) <= num_triggers:
            raise UserError(f"{num_triggers} triggers need more than {len(single)} different characters")
        p = single / single.sum()
        pairs = np.where(pairs.sum(1, keepdims=True) > 0, pairs, p)
        most = np.argsort(-p, kind="stable")[:num_triggers]
        return cls(p, pairs / pairs.sum(1, keepdims=True), tuple(int(x) for x in most))

    @property
    def bos(self) -> int:
        return len(self.unigram)

    @property
    def vocab_size(self) -> int:
        return len(self.unigram) + 1

    def batch(self, rng: np.random.Generator, batch_size: int, length: int) -> Int[Tensor, "batch length"]:
        """Sequences of ``length`` tokens, BOS included."""
        ids = np.full((batch_size, length), self.bos)
        first = self._first()
        for t in range(1, length):
            probabilities = self.bigram[ids[:, t - 1]] if t > 1 else np.tile(first, (batch_size, 1))
            drawn = (rng.random((batch_size, 1)) > probabilities.cumsum(1)[:, :-1]).sum(1)
            copy = np.isin(ids[:, t - 1], self.triggers)
            ids[:, t] = np.where(copy, ids[:, t - 2], drawn)
        return torch.from_numpy(ids)

    def is_trigger(self, ids: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Where the next token is a copy of the one before."""
        return torch.isin(ids, torch.tensor(self.triggers, device=ids.device))

    def next_token(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        """The probabilities of the token after each, as the rule has them."""
        rows = np.zeros((self.vocab_size, self.vocab_size))
        rows[:-1, :-1] = self.bigram
        rows[-1, :-1] = self._first()
        drawn = torch.from_numpy(rows).to(ids.device)[ids]
        copied = torch.nn.functional.one_hot(ids.roll(1, dims=1), self.vocab_size).to(drawn.dtype)
        return torch.where(self.is_trigger(ids)[..., None], copied, drawn)

    def _first(self) -> Float[np.ndarray, " characters"]:
        p = self.unigram.copy()
        p[list(self.triggers)] = 0
        return p / p.sum()
