"""Reading files: which there are, what text they hold, and whether one has changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from assay.errors import UserError


def decode(content: bytes) -> str | None:
    """The text of ``content``, or None where it is binary: it holds a NUL byte or is not UTF-8."""
    if b"\0" in content:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def read(path: Path) -> bytes:
    """Raises ``UserError`` if the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None


def files_below(folder: Path, *, without: frozenset[str] = frozenset()) -> list[Path]:
    """All files below ``folder``, sorted by path; nothing hidden, and no folder named in ``without``.

    Raises ``UserError`` if a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read folder {error.filename!r}: {error.strerror}")

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if name not in without and not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def stamp(files: Iterable[Path]) -> tuple[str, int]:
    """A hash that changes when a file does, without reading one, and the time of the newest change in ns.

    It covers path, size, inode and the times of modification and of change of each file. Raises ``UserError``
    if one is gone.
    """
    digest = hashlib.blake2b(digest_size=16)
    newest = 0
    for path in files:
        try:
            state = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
        fields = [str(path), state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]
        digest.update(json.dumps(fields).encode())
        newest = max(newest, state.st_mtime_ns, state.st_ctime_ns)
    return digest.hexdigest(), newest
