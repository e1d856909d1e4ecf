"""Token files: what a tokenizer makes of a split, kept in the cache and opened by memory mapping.

    CACHE/tokens/KEY/train.bin         ids of the training text
    CACHE/tokens/KEY/validation.bin    ids of the validation text
    CACHE/tokens/KEY/about.json        their lengths and a checksum

``KEY`` hashes the corpus' content, the split, the tokenizer and the format. A folder appears whole or not at
all; one that is damaged is made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from assay.data.split import Split
from assay.data.tokenizers import Tokenizer
from assay.errors import AssayError, UserError
from assay.files import disk_errors, write_json
from assay.home import cache

FORMAT = 1
BATCH_CHARACTERS = 1 << 20


@dataclasses.dataclass(frozen=True)
class About:
    """What ``about.json`` holds beside the checksum."""

    vocab_size: int
    separator: int
    eval_bytes: int
    train_tokens: int
    validation_tokens: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    def checksum(self, validation: bytes) -> str:
        """Hash of these numbers and the validation ids; of the training ids only the length is checked."""
        digest = hashlib.blake2b(json.dumps(dataclasses.asdict(self)).encode(), digest_size=16)
        digest.update(validation)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Ids of the training and validation documents, each document preceded by the separator."""

    key: str
    about: About
    train: np.memmap
    validation: np.memmap


def tokens(split: Split, tokenizer: Tokenizer) -> Tokens:
    """The token files of ``split``, made if they are not there yet.

    Processes that make the same files at once all get whole ones.

    Raises ``UserError`` if the corpus or the tokenizer cannot be used, and ``AssayError`` if the cache cannot
    be written.
    """
    fields = [FORMAT, split.key, tokenizer.identity]
    key = hashlib.blake2b(json.dumps(fields).encode(), digest_size=16).hexdigest()
    folder = cache() / "tokens" / key
    for _ in range(3):
        found = _open(folder, key)
        if found is not None:
            return found
        _make(folder, key, split, tokenizer)
    raise AssayError(f"{str(folder)!r} is damaged as soon as it is written; is another program changing it?")


def _open(folder: Path, key: str) -> Tokens | None:
    try:
        recorded = json.loads((folder / "about.json").read_bytes())
        checksum = recorded.pop("checksum")
        about = About(**recorded)
        width = about.dtype.itemsize
        if (folder / "train.bin").stat().st_size != about.train_tokens * width:
            return None
        if checksum != about.checksum((folder / "validation.bin").read_bytes()):
            return None
        train = np.memmap(folder / "train.bin", about.dtype, mode="r")
        validation = np.memmap(folder / "validation.bin", about.dtype, mode="r")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Tokens(key, about, train, validation)


def _make(folder: Path, key: str, split: Split, tokenizer: Tokenizer) -> None:
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
        try:
            _write(temporary, split, tokenizer)
            if _open(folder, key) is None:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, temporary / "damaged")
                shutil.rmtree(temporary / "damaged", ignore_errors=True)
                os.rename(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, split: Split, tokenizer: Tokenizer) -> None:
    evaluation = split.evaluation()
    _check_lossless(evaluation, tokenizer)
    dtype = About(tokenizer.vocab_size, tokenizer.separator, 0, 0, 0).dtype
    with (folder / "train.bin").open("wb") as file:
        train_tokens = _write_ids(file, split.training(), tokenizer, dtype)
    with (folder / "validation.bin").open("wb") as file:
        validation_tokens = _write_ids(file, evaluation, tokenizer, dtype)
    about = About(
        vocab_size=tokenizer.vocab_size,
        separator=tokenizer.separator,
        eval_bytes=sum(len(text.encode("utf-8")) for text in evaluation),
        train_tokens=train_tokens,
        validation_tokens=validation_tokens,
    )
    checksum = about.checksum((folder / "validation.bin").read_bytes())
    write_json(folder / "about.json", {**dataclasses.asdict(about), "checksum": checksum})


def _write_ids(file: BinaryIO, texts: Iterable[str], tokenizer: Tokenizer, dtype: np.dtype) -> int:
    separator = np.array([tokenizer.separator], dtype)
    written = 0
    for batch in _batches(texts):
        pieces: list[np.ndarray] = []
        for ids in tokenizer.encode_batch(batch):
            pieces += [separator, ids.astype(dtype)]
        block = np.concatenate(pieces)
        if np.count_nonzero(block == separator) != len(batch):
            raise UserError(
                f"tokenizer {tokenizer.name!r} writes its end-of-text token {tokenizer.separator} into texts"
            )
        file.write(block.data)
        written += len(block)
    file.flush()
    os.fsync(file.fileno())
    return written


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check_lossless(texts: list[str], tokenizer: Tokenizer) -> None:
    """A tokenizer that drops what it cannot say would be flattered by bits per byte."""
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        if unicodedata.normalize("NFC", tokenizer.decode(ids)) != unicodedata.normalize("NFC", text):
            raise UserError(
                f"tokenizer {tokenizer.name!r} does not give back the text that it was given, so bits per "
                f"byte would not be true of it; use a lossless one, such as bytes, bpe or any byte-level one"
            )
