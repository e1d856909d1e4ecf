"""Mixtures: batches whose rows come from several corpora, in exact shares.

    rows of corpus m in a batch      ⌊B sₘ⌋ or ⌈B sₘ⌉
    in all batches up to a step      within 1 of their share, and exact where that is a whole number

Each corpus is read in the order in which it would be read alone with the same seed, and nothing of it is repeated
before all of it was read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from assay.data.split import Split
from assay.data.windows import TokenData


class Allotment:
    """How the rows of each batch fall to corpora.

    A corpus gets the whole part of its share of a batch. The rows that are left go, one each, to those that are most
    behind. The pattern repeats after as many batches as make all shares whole.

    Args:
        shares: proportions, not all 0; 0.05 means exactly one twentieth.
        batch_size: rows in a batch.
    """

    def __init__(self, shares: Sequence[float], batch_size: int) -> None:
        weights = [Fraction(str(share)) for share in shares]
        wanted = [batch_size * weight / sum(weights) for weight in weights]
        self.period = math.lcm(*(rows.denominator for rows in wanted))
        self._wanted = [int(rows * self.period) for rows in wanted]
        self._least = [int(rows) for rows in wanted]
        self._spare = batch_size - sum(self._least)
        self._counts = [[0] * len(weights)]

    def before(self, step: int) -> list[int]:
        """Rows of each corpus in all batches before that of ``step``."""
        periods, place = divmod(step, self.period)
        while len(self._counts) <= place:
            self._extend()
        return [periods * whole + rows for whole, rows in zip(self._wanted, self._counts[place], strict=True)]

    def _extend(self) -> None:
        """In units of 1 / period rows, so that all numbers are whole."""
        number, done = len(self._counts), self._counts[-1]
        counts = [rows + least for rows, least in zip(done, self._least, strict=True)]
        behind = [number * whole - self.period * rows for whole, rows in zip(self._wanted, counts, strict=True)]
        partial = [m for m, whole in enumerate(self._wanted) if whole % self.period]
        for m in sorted(partial, key=lambda m: -behind[m])[: self._spare]:
            counts[m] += 1
        self._counts.append(counts)


class JointSplit(Split):
    """Several splits as one, for a tokenizer that is trained on all of them."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = splits

    @property
    def key(self) -> str:
        return hashlib.blake2b(json.dumps([split.key for split in self.splits]).encode(), digest_size=16).hexdigest()

    def training(self) -> Iterator[str]:
        return (text for split in self.splits for text in split.training())

    def evaluation(self) -> list[str]:
        return [text for split in self.splits for text in split.evaluation()]


class _Joined:
    """The training ids of several corpora, counted and bounded without a copy."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def max(self) -> Any:
        return max(part.max() for part in self.parts)


class MixedData(TokenData):
    """The tokens of several corpora under one tokenizer; the same attributes as of one.

    ``validation`` holds all their validation texts one behind the other, and ``domains`` each.
    """

    def __init__(self, corpus: str, members: Sequence[TokenData], shares: Sequence[float]) -> None:
        first = members[0]
        self.corpus, self.tokenizer = corpus, first.tokenizer
        self.vocab_size, self.separator = first.vocab_size, first.separator
        self.members, self.shares = members, shares
        self.train: Any = _Joined([member.train for member in members])
        self.validation = np.concatenate([member.validation for member in members])
        self.eval_bytes = sum(member.eval_bytes for member in members)
        identity = [[member.fingerprint for member in members], list(map(str, shares))]
        self.fingerprint = hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()
        self._allotments: dict[int, Allotment] = {}

    @property
    def domains(self) -> Mapping[str, TokenData]:
        return {member.corpus: member for member in self.members}

    def windows(self, sequence_length: int) -> int:
        """Windows in an epoch of every corpus that is trained on.

        Raises ``UserError`` if one is shorter than a window.
        """
        read = [member for member, share in zip(self.members, self.shares, strict=True) if share]
        return sum(member.windows(sequence_length) for member in read)

    def batch(
        self, step: int, *, seed: int, batch_size: int, sequence_length: int, rank: int = 0, world: int = 1
    ) -> Int[Tensor, "batch time+1"]:
        """Rows ``rank::world`` of the batch of ``step``, the corpora one behind the other."""
        allotment = self._allotments.setdefault(batch_size, Allotment(self.shares, batch_size))
        begins, ends = allotment.before(step), allotment.before(step + 1)
        parts = [
            member.rows(np.arange(begin, end), seed=seed, sequence_length=sequence_length)
            for member, begin, end in zip(self.members, begins, ends, strict=True)
            if end > begin
        ]
        return torch.cat(parts)[rank::world]
