"""``reference:PATH``: how likely a document is under a text that is known to be good.

    mean over the bytes of log₂ p(byte | byte before it)
    p(b | a) = (count(a, b) + p(b)) / (Σ_c count(a, c) + 1),    p(b) = (count(b) + 1) / (bytes + 256)

with the counts of the reference. It is in bits, at most 0; the first byte of a document has p(b).
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
from jaxtyping import Float

from assay.data.corpora import Document
from assay.data.corpora.text import TextCorpus
from assay.data.quality import Quality, qualities
from assay.errors import UserError


@qualities.register("reference")
class Reference(Quality):
    """``path`` is a text file or a folder of them, read as the corpus ``text`` is."""

    argument = "path"

    def __init__(self, *, path: str) -> None:
        self.path = path

    def score(self, document: Document) -> float:
        single, paired = self._tables
        ids = np.frombuffer(document.text.encode(), np.uint8)
        return float((single[ids[0]] + paired[ids[:-1], ids[1:]].sum()) / len(ids))

    def identity(self) -> Any:
        return ["reference", hashlib.blake2b(b"\0".join(self._texts), digest_size=16).hexdigest()]

    @functools.cached_property
    def _texts(self) -> list[bytes]:
        texts = [document.text.encode() for document in TextCorpus(path=self.path).documents() if document.text]
        if not texts:
            raise UserError(f"quality 'reference:{self.path}' holds no text")
        return texts

    @functools.cached_property
    def _tables(self) -> tuple[Float[np.ndarray, "256"], Float[np.ndarray, "256 256"]]:
        """log₂ p(b) and log₂ p(b | a)."""
        single, paired = np.zeros(256), np.zeros((256, 256))
        for text in self._texts:
            ids = np.frombuffer(text, np.uint8).astype(np.int64)
            single += np.bincount(ids, minlength=256)
            paired += np.bincount(ids[:-1] * 256 + ids[1:], minlength=256 * 256).reshape(256, 256)
        p = (single + 1) / (single.sum() + 256)
        return np.log2(p), np.log2((paired + p) / (paired.sum(1, keepdims=True) + 1))
