"""The split of a corpus into training and validation text: by document, never through one.

A document's side depends on its content alone, so that neither order nor neighbours nor copies of it matter::

    validation  ⇔  hash(content) / 2⁶⁴ < fraction

A corpus of one document is first cut into paragraphs, which then count as its documents.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import heapq
import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

from assay.data.corpora import Corpus, Document
from assay.data.reading import stamp
from assay.errors import AssayError, UserError
from assay.files import write_json
from assay.home import cache

MEMO_FORMAT = 1
SETTLED_NS = 2_000_000_000
"""A file changed less than this ago could change again within the same tick of the file system's clock."""


def paragraphs(text: str) -> Iterator[str]:
    """Pieces of ``text``; joined, they are the text.

    With n = 2048 characters, or a twentieth of the text if that is less: a piece ends after the first blank
    line from its n-th character on, or after the first line from its 4n-th on; the last has n or more.
    """
    at_least = min(2048, max(1, len(text) // 20))
    start = 0
    for line_end in re.finditer(r"\n(?:[ \t\r]*\n)*", text):
        end = line_end.end()
        wanted = at_least if line_end[0].count("\n") > 1 else 4 * at_least
        if end - start >= wanted and len(text) - end >= at_least:
            yield text[start:end]
            start = end
    yield text[start:]


class Survey(NamedTuple):
    """What one pass over a corpus finds out.

    Attributes:
        content: hash of the names and texts of all documents, in order.
        threshold: documents whose key is below it are validation documents.
        evaluation: the validation text that is used, one string per document.
    """

    content: str
    threshold: int
    evaluation: list[str]


class Split:
    """Training and validation documents of a corpus.

    Both sides get at least one document, whatever the fraction, and copies of one content share a side.

    Args:
        corpus: what is split.
        validation: fraction of the documents to keep for validation, between 0 and 1.
        eval_bytes: UTF-8 bytes of validation text to use, at most. The documents are taken in the order of
            their hashes and each once; the last is cut at a character.
    """

    def __init__(self, corpus: Corpus, *, validation: float, eval_bytes: int) -> None:
        self.corpus = corpus
        self.validation = validation
        self.eval_bytes = eval_bytes

    @functools.cached_property
    def key(self) -> str:
        """Hash of the corpus' content and of how it is split, found without reading what has not changed.

        Raises ``UserError`` if the corpus cannot be read or has nothing to split.
        """
        fields = [self._content(), self.validation, self.eval_bytes]
        return hashlib.blake2b(json.dumps(fields).encode(), digest_size=16).hexdigest()

    def training(self) -> Iterator[str]:
        """The texts of the training documents, in the order of the corpus."""
        return (document.text for document in self.training_documents())

    def training_documents(self) -> Iterator[Document]:
        """The training documents, in the order of the corpus.

        Raises ``AssayError`` at the end if the corpus has changed since it was surveyed.
        """
        content = _ContentHash()
        for document, encoded in self._documents():
            if content.add(document, encoded) >= self.survey.threshold:
                yield document
        if content.hexdigest() != self.survey.content:
            raise AssayError(f"corpus {self.corpus.name!r} changed while it was read; run the command again")

    def evaluation(self) -> list[str]:
        """The validation text that is used, one string per document; at most ``eval_bytes`` in all."""
        return self.survey.evaluation

    @functools.cached_property
    def survey(self) -> Survey:
        """One pass over the corpus.

        Raises ``UserError`` if the corpus cannot be read or has nothing to split.
        """
        content = _ContentHash()
        candidates = _Lowest(self.eval_bytes)
        first: int | None = None
        last = 0
        for document, encoded in self._documents():
            key = content.add(document, encoded)
            first = key if first is None else min(first, key)
            last = max(last, key)
            candidates.add(key, encoded)
        if first is None:
            raise UserError(f"corpus {self.corpus.name!r} is empty: it holds no text")
        if first == last:
            raise UserError(
                f"corpus {self.corpus.name!r} holds only one text, and no line end at which to split it into "
                f"training and validation text"
            )
        threshold = min(max(int(self.validation * 2**64), first + 1), last)
        return Survey(content.hexdigest(), threshold, candidates.texts(threshold))

    def _documents(self) -> Iterator[tuple[Document, bytes]]:
        documents = (document for document in self.corpus.documents() if document.text)
        head = list(itertools.islice(documents, 2))
        if len(head) == 1:
            name, text = head[0]
            head = [Document(f"{name}#{number}", piece) for number, piece in enumerate(paragraphs(text))]
        for document in itertools.chain(head, documents):
            try:
                yield document, document.text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(
                    f"corpus {self.corpus.name!r}, document {document.name!r}: character {error.start} is "
                    f"half of a surrogate pair, which UTF-8 cannot hold"
                ) from None

    def _content(self) -> str:
        before = self._stamp()
        if before is None or "survey" in self.__dict__:
            return self.survey.content
        mark, newest = before
        memo = cache() / "corpora" / f"{mark}.json"
        try:
            return str(json.loads(memo.read_bytes())["content"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        started = time.time_ns()
        content = self.survey.content
        if newest < started - SETTLED_NS and self._stamp() == before:
            with contextlib.suppress(AssayError, OSError):
                memo.parent.mkdir(parents=True, exist_ok=True)
                write_json(memo, {"content": content})
        return content

    def _stamp(self) -> tuple[str, int] | None:
        files = self.corpus.files()
        if not files:
            return None
        mark, newest = stamp(files)
        fields = [MEMO_FORMAT, self.corpus.name, mark]
        return hashlib.blake2b(json.dumps(fields).encode(), digest_size=16).hexdigest(), newest


class _ContentHash:
    """Hash of a sequence of documents; each document's own hash is its key for the split."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, document: Document, encoded: bytes) -> int:
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        name = document.name.encode("utf-8", "surrogateescape")
        self._digest.update(len(name).to_bytes(8) + name + digest)
        return int.from_bytes(digest[:8])

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class _Lowest:
    """The texts added that have the lowest keys and together hold ``limit`` bytes; copies count once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._texts: dict[int, bytes] = {}
        self._keys: list[int] = []  # a heap of -key: the highest key comes first
        self._size = 0

    def add(self, key: int, encoded: bytes) -> None:
        if key in self._texts or (self._size >= self.limit and key > -self._keys[0]):
            return
        self._texts[key] = encoded
        heapq.heappush(self._keys, -key)
        self._size += len(encoded)
        while self._size - len(self._texts[-self._keys[0]]) >= self.limit:
            self._size -= len(self._texts.pop(-heapq.heappop(self._keys)))

    def texts(self, threshold: int) -> list[str]:
        """Those with a key below ``threshold``, in the order of their keys, cut to ``limit`` bytes."""
        taken: list[str] = []
        left = self.limit
        for key in sorted(key for key in self._texts if key < threshold):
            encoded = self._texts[key][:left]
            left -= len(encoded)
            text = encoded.decode("utf-8", "ignore")
            if text:
                taken.append(text)
        return taken
