"""``python-stdlib``: the library sources of the running interpreter; a first run downloads nothing."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from assay.data.corpora import Corpus, Document, corpora
from assay.data.reading import decode, files_below, read
from assay.errors import UserError

OTHERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})


@corpora.register("python-stdlib")
class PythonStdlib(Corpus):
    """The ``*.py`` files of Python's own library, about 12 MB, one document each.

    Left out: installed packages, tests, files that are not UTF-8, and ``_sysconfigdata*``, which differs from
    machine to machine. Two interpreters of one version give the same corpus; two versions do not.
    """

    name = "python-stdlib"

    def __init__(self) -> None:
        self.folder = Path(sysconfig.get_path("stdlib"))

    def documents(self) -> Iterator[Document]:
        for path in self.files():
            text = decode(read(path))
            if text is not None:
                yield Document(path.relative_to(self.folder).as_posix(), text)

    def files(self) -> list[Path]:
        found = [
            path
            for path in files_below(self.folder, without=OTHERS)
            if path.suffix == ".py" and not path.name.startswith("_sysconfigdata")
        ]
        if not found:
            raise UserError(
                f"corpus 'python-stdlib': this Python has no library sources in {str(self.folder)!r}; "
                f"name a text of your own with text:PATH"
            )
        return found
