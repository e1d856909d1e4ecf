"""Orders: in which sequence an epoch reads the training text.

An order is constructed with ``(documents)``, those of the training text, and says where the tokens of a window lie::

    @orders.register("ascending")
    class Ascending(Order):
        def __init__(self, documents: Documents, *, quality: ...) -> None: ...
        def places(self, windows, *, seed, epoch, sequence_length) -> Int[np.ndarray, "windows time+1"]: ...

It is a function of (seed, epoch) alone, so that a run that was stopped reads on where it was.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, Integer

from assay.data.corpora import Document
from assay.errors import AssayError
from assay.registry import Registry

CHUNK = 1 << 24


class Documents:
    """The training documents, one behind the other as ids, each after a separator.

    Args:
        ids: ids of the training text, which may be memory-mapped.
        separator: the id before each document.
        key: names the documents in caches.
        read: gives their names and texts, in the same order.
    """

    def __init__(
        self,
        ids: Integer[np.ndarray, " tokens"],
        separator: int,
        key: str = "",
        read: Callable[[], Iterator[Document]] = lambda: iter(()),
    ) -> None:
        self.tokens = len(ids)
        self.key, self.read = key, read
        self._ids, self._separator = ids, separator

    @functools.cached_property
    def starts(self) -> Int[np.ndarray, " documents"]:
        """The place of each document's separator."""
        parts = range(0, len(self._ids), CHUNK)
        return np.concatenate([at + np.flatnonzero(self._ids[at : at + CHUNK] == self._separator) for at in parts])

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " documents"]:
        """Tokens of each document, its separator included."""
        return np.diff(self.starts, append=self.tokens)

    def check(self, count: int) -> None:
        """Raises ``AssayError`` unless ``count`` is the number of documents."""
        if count != len(self.starts):
            raise AssayError(f"{count} documents were scored and {len(self.starts)} tokenised; run the command again")


class Order(ABC):
    """``tokens`` is how many an epoch reads.

    An order that ``samples`` has an option ``tokens``, which a run sets to its budget unless told otherwise.
    """

    tokens: int
    samples: ClassVar[bool] = False

    @abstractmethod
    def places(
        self, windows: Int[np.ndarray, " windows"], *, seed: int, epoch: int, sequence_length: int
    ) -> Int[np.ndarray, "windows time+1"]:
        """Where in the training text the tokens of these windows of an epoch are."""

    def identity(self) -> Any:
        """What tells this order from others; ``None`` for the default. It is part of the data's fingerprint."""
        return None


orders: Registry[Order] = Registry("order", __name__)
