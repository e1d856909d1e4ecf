"""``compression``: how little of a document is repetition.

    bytes of the document, deflated, / bytes of the document

Repeated lines and boilerplate compress well and score low.
"""

from __future__ import annotations

import zlib
from typing import Any

from assay.data.corpora import Document
from assay.data.quality import Quality, qualities


@qualities.register("compression")
class Compression(Quality):
    """Documents of less than about a hundred bytes score above 1, because of the format's header."""

    def score(self, document: Document) -> float:
        encoded = document.text.encode()
        return len(zlib.compress(encoded, 6)) / len(encoded)

    def identity(self) -> Any:
        return "compression"
