"""Corpora: where text comes from.

A corpus is documents in a fixed order. Reading it twice gives the same documents, or an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from assay.registry import Registry


class Document(NamedTuple):
    """One text, and where in the corpus it is: a relative path, or a number."""

    name: str
    text: str


class Corpus(ABC):
    """A source of documents. ``name`` says which, in messages: two corpora of one name are the same."""

    name: str

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """The documents in their order. Raises ``UserError`` if one cannot be read as text."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that determine the documents; none, if they cannot be told.

        Raises ``UserError`` if the corpus does not exist.
        """


corpora: Registry[Corpus] = Registry("corpus", __name__)
