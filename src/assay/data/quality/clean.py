"""``clean``: the share of characters that are letters, digits, blanks or the punctuation of prose."""

from __future__ import annotations

import re
from typing import Any

from assay.data.corpora import Document
from assay.data.quality import Quality, qualities

_OTHER = re.compile(r"""[^\w\s.,;:!?'"()-]|_""")


@qualities.register("clean")
class Clean(Quality):
    """Symbols, markup and broken characters lower it; the underscore counts as a symbol."""

    def score(self, document: Document) -> float:
        return 1 - len(_OTHER.findall(document.text)) / len(document.text)

    def identity(self) -> Any:
        return "clean"
