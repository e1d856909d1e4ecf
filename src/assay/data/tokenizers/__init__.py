"""Tokenizers: text to ids and back, without loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from assay.registry import Registry


class Tokenizer(ABC):
    """Ids of texts.

    Every document is preceded by ``separator``, so that its first token is predicted too. No text encodes to
    it: a text that spells it out gets the ids of its letters.
    """

    name: str

    @property
    @abstractmethod
    def identity(self) -> str:
        """Differs between two tokenizers that give different ids."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Ids are below it, the separator's included."""

    @property
    @abstractmethod
    def separator(self) -> int:
        """The id that stands before each document."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Integer[np.ndarray, " length"]]:
        """The ids of each text, without separators."""

    def encode(self, text: str) -> Integer[np.ndarray, " length"]:
        """The ids of one text, without separators."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; separators are left out, and broken UTF-8 becomes U+FFFD."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the files that ``transformers.AutoTokenizer`` opens as this tokenizer."""


tokenizers: Registry[Tokenizer] = Registry("tokenizer", __name__)
