"""``hf:NAME[:CONFIG]``: a data set of the Hugging Face Hub, or a local folder that ``datasets`` can load."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assay.data.corpora import Corpus, Document, corpora
from assay.data.reading import files_below
from assay.errors import UserError, nearest


@corpora.register("hf")
class HuggingFaceCorpus(Corpus):
    """Each row of one split is a document: the string in the column ``field``. Empty rows are passed over.

    Needs ``pip install 'assay[datasets]'``. No code of the data set is run.
    """

    argument = "dataset"

    def __init__(self, *, dataset: str, split: str = "train", field: str = "text") -> None:
        self.name = f"hf:{dataset}" + (f" ({split}, {field})" if (split, field) != ("train", "text") else "")
        self.split = split
        self.field = field
        self.folder = Path(dataset).expanduser() if Path(dataset).expanduser().exists() else None
        self.dataset, _, self.config = (dataset, "", "") if self.folder else dataset.partition(":")

    def documents(self) -> Iterator[Document]:
        if self.field not in self._rows.column_names:
            columns = self._rows.column_names
            raise UserError(f"corpus {self.name!r} has no column {self.field!r}; {nearest(self.field, columns)}")
        number = 0
        for batch in self._rows.select_columns([self.field]).iter(batch_size=1000):
            for text in batch[self.field]:
                if text is not None and not isinstance(text, str):
                    raise UserError(
                        f"corpus {self.name!r}: column {self.field!r} holds {type(text).__name__}, not text"
                    )
                yield Document(f"{self.split}/{number}", text or "")
                number += 1

    def files(self) -> list[Path]:
        if self.folder is None:
            return [Path(file["filename"]) for file in self._rows.cache_files]
        if not self.folder.is_dir():
            raise UserError(f"corpus {self.name!r} is a file; hf: takes a folder or a name, text: takes a file")
        return files_below(self.folder)

    @functools.cached_property
    def _rows(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise UserError(
                f"corpus {self.name!r} needs the package datasets: pip install 'assay[datasets]'"
            ) from None
        name = str(self.folder or self.dataset)
        try:
            return datasets.load_dataset(name, self.config or None, split=self.split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = str(cause).strip().splitlines() or [type(cause).__name__]
            raise UserError(f"corpus {self.name!r} cannot be loaded: {reason[0]}") from None
