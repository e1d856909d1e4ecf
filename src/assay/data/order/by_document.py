"""Whole documents one after another: in a random order, or from the worst to the best, or the reverse.

    uniform      a permutation drawn from (seed, epoch)
    ascending    by quality, equals in a random order
    descending   the reverse of ascending

Windows are cut from the documents so ordered and read in turn, so that a step reads one level of quality, on however
many devices. With ``tokens`` an epoch reads a sample of the documents that holds so many, drawn by the seed and the
same for all three orders; the last one drawn is cut. Each token is read once in an epoch.

Luo, Sun, Wen, Shi, Cui, Dang, Lyu, Chen, 2025, arXiv:2511.18903.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import AfterValidator

from assay.data.order import Documents, Order, orders
from assay.data.quality import Quality, qualities, scores
from assay.data.spec import component, plain
from assay.quantities import Count

QualityName = Annotated[Any, AfterValidator(plain(qualities))]


class _Sequence(NamedTuple):
    """Documents in the order in which they are read: where each starts, and where the next begins in the sequence."""

    starts: Int[np.ndarray, " documents"]
    ends: Int[np.ndarray, " documents"]


class ByDocument(Order):
    """Documents in the order that ``ranking`` gives."""

    samples = True

    def __init__(self, documents: Documents, tokens: int | None) -> None:
        self.documents = documents
        self.tokens = min(tokens or documents.tokens, documents.tokens)
        self._sequence = functools.lru_cache(maxsize=4)(self._draw)

    @abstractmethod
    def ranking(self, sample: Int[np.ndarray, " sample"], random: np.random.Generator) -> Int[np.ndarray, " sample"]:
        """The order of the documents ``sample``, as indices into it."""

    def places(
        self, windows: Int[np.ndarray, " windows"], *, seed: int, epoch: int, sequence_length: int
    ) -> Int[np.ndarray, "windows time+1"]:
        starts, ends = self._sequence(seed, epoch)
        read = (windows[:, None] * sequence_length + np.arange(sequence_length + 1)) % self.tokens
        document = np.searchsorted(ends, read, side="right")
        begins = np.concatenate([[0], ends[:-1]])
        return starts[document] + read - begins[document]

    def _draw(self, seed: int, epoch: int) -> _Sequence:
        sample, lengths = self._sample(seed)
        ranking = self.ranking(sample, np.random.default_rng([seed, epoch, 1]))
        return _Sequence(self.documents.starts[sample[ranking]], np.cumsum(lengths[ranking]))

    def _sample(self, seed: int) -> tuple[Int[np.ndarray, " sample"], Int[np.ndarray, " sample"]]:
        drawn = np.random.default_rng([seed, 0, 2]).permutation(len(self.documents.starts))
        lengths = self.documents.lengths[drawn]
        count = int(np.searchsorted(np.cumsum(lengths), self.tokens)) + 1
        lengths = lengths[:count]
        lengths[-1] -= lengths.sum() - self.tokens
        return drawn[:count], lengths


@orders.register("uniform")
class Uniform(ByDocument):
    """Documents in a random order: what the others are compared with."""

    def __init__(self, documents: Documents, *, tokens: Count | None = None) -> None:
        super().__init__(documents, tokens)

    def ranking(self, sample: Int[np.ndarray, " sample"], random: np.random.Generator) -> Int[np.ndarray, " sample"]:
        return random.permutation(len(sample))

    def identity(self) -> Any:
        return ["uniform", self.tokens]


@orders.register("ascending")
class Ascending(ByDocument):
    """The worst documents first. ``quality`` scores them: the name of a measure, or a table with its options."""

    def __init__(
        self, documents: Documents, *, quality: QualityName = "compression", tokens: Count | None = None
    ) -> None:
        super().__init__(documents, tokens)
        self.quality: Quality = component(qualities, quality).build()

    @functools.cached_property
    def scores(self) -> Float[np.ndarray, " documents"]:
        found = scores(self.quality, self.documents.key, self.documents.read)
        self.documents.check(len(found))
        return found

    def ranking(self, sample: Int[np.ndarray, " sample"], random: np.random.Generator) -> Int[np.ndarray, " sample"]:
        return np.lexsort((random.random(len(sample)), self.scores[sample]))

    def identity(self) -> Any:
        return ["ascending", self.tokens, self.quality.identity()]


@orders.register("descending")
class Descending(Ascending):
    """The best documents first."""

    def ranking(self, sample: Int[np.ndarray, " sample"], random: np.random.Generator) -> Int[np.ndarray, " sample"]:
        return super().ranking(sample, random)[::-1]

    def identity(self) -> Any:
        return ["descending", self.tokens, self.quality.identity()]
