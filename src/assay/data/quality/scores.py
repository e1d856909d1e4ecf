"""``scores:FILE``: numbers from elsewhere, by the name of the document.

    {"name": "notes/a.txt", "score": 0.7}

one line each. Names are those of the corpus: the path of a file below the folder, FILE:LINE in a ``.jsonl`` file,
SPLIT/ROW in a data set.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from assay.data.corpora import Document
from assay.data.quality import Quality, qualities
from assay.data.reading import read
from assay.errors import UserError


@qualities.register("scores")
class Scores(Quality):
    """Every training document needs a score; lines about others do not matter."""

    argument = "file"

    def __init__(self, *, file: str) -> None:
        self.file = Path(file).expanduser()

    def score(self, document: Document) -> float:
        try:
            return self._by_name[document.name]
        except KeyError:
            raise UserError(f"{str(self.file)!r} has no score for the document {document.name!r}") from None

    def identity(self) -> Any:
        return ["scores", hashlib.blake2b(self._content, digest_size=16).hexdigest()]

    @functools.cached_property
    def _content(self) -> bytes:
        return read(self.file)

    @functools.cached_property
    def _by_name(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for number, line in enumerate(self._content.decode("utf-8", "replace").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                name, score = record["name"], float(record["score"])
            except (ValueError, KeyError, TypeError):
                name, score = None, math.nan
            if not isinstance(name, str) or not math.isfinite(score):
                raise UserError(
                    f'{str(self.file)!r}, line {number}: an object like {{"name": "a.txt", "score": 0.7}} is wanted'
                )
            found[name] = score
        return found
