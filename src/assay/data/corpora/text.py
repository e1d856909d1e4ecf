"""``text:PATH``: a text file, or a folder of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from assay.data.corpora import Corpus, Document, corpora
from assay.data.reading import decode, files_below, read
from assay.errors import UserError, nearest


@corpora.register("text")
class TextCorpus(Corpus):
    """A file, or all text files below a folder in the order of their paths.

    A file is one document; of a ``.jsonl`` file each line is one, under the key "text". In a folder, binary
    files (NUL bytes, or not UTF-8) and hidden ones are passed over.
    """

    argument = "path"

    def __init__(self, *, path: str) -> None:
        self.name = f"text:{path}"
        self.path = Path(path).expanduser()

    def documents(self) -> Iterator[Document]:
        files = self.files()
        for path in files:
            text = decode(read(path))
            if text is not None:
                name = path.relative_to(self.path).as_posix() if path != self.path else path.name
                yield from _lines(path, name, text) if path.suffix == ".jsonl" else [Document(name, text)]
            elif files == [self.path]:
                raise UserError(f"corpus {self.name!r} is not UTF-8 text")

    def files(self) -> list[Path]:
        if self.path.is_dir():
            return files_below(self.path)
        if self.path.is_file():
            return [self.path]
        raise UserError(f"corpus {self.name!r}: there is no such file or folder")


def _lines(path: Path, name: str, content: str) -> Iterator[Document]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{str(path)!r}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: an object with a key 'text' is wanted, not {line.strip()[:40]}")
        if not isinstance(record.get("text"), str):
            raise UserError(f"{where}: no string under the key 'text'; {nearest('text', record)}")
        yield Document(f"{name}:{number}", record["text"])
