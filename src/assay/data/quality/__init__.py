"""Qualities: a number for each document, higher for better ones.

    @qualities.register("clean")
    class Clean(Quality):
        def score(self, document: Document) -> float: ...

Scores are kept in the cache, ``CACHE/scores/KEY.json``, by the content of the documents and the measure's identity.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from assay.data.corpora import Document
from assay.files import disk_errors, write_json
from assay.home import cache
from assay.registry import Registry

FORMAT = 1


class Quality(ABC):
    """A measure of documents."""

    @abstractmethod
    def score(self, document: Document) -> float:
        """Higher is better."""

    @abstractmethod
    def identity(self) -> Any:
        """Differs between two measures that give different scores."""


qualities: Registry[Quality] = Registry("quality", __name__)


def scores(quality: Quality, key: str, read: Callable[[], Iterator[Document]]) -> Float[np.ndarray, " documents"]:
    """The score of each document that ``read`` gives; ``key`` names their content.

    Raises ``UserError`` for a document that cannot be scored, and ``AssayError`` if the cache cannot be written.
    """
    fields = [FORMAT, key, quality.identity()]
    path = cache() / "scores" / f"{hashlib.blake2b(json.dumps(fields).encode(), digest_size=16).hexdigest()}.json"
    try:
        return np.array(json.loads(path.read_bytes()), np.float64)
    except (OSError, ValueError, TypeError):
        pass
    found = [quality.score(document) for document in read()]
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return np.array(found, np.float64)
