"""The file ``library.sqlite`` in assay's home: what imported pages said, one row per title.

Every write is one transaction: a process that dies, or a full disk, leaves the file as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from assay.catalog.daily_papers import Entry
from assay.catalog.dates import clearer
from assay.catalog.titles import title_key
from assay.errors import AssayError, UserError
from assay.home import home

_APPLICATION_ID = int.from_bytes(b"assa", "big")
_VERSION = 1
_GO_ON = "move it away and import your pages again"
_COLUMNS = tuple(field.name for field in dataclasses.fields(Entry))


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What an import did: ``distinct`` papers among ``entries``, each added, updated or unchanged."""

    entries: int
    distinct: int
    added: int
    updated: int
    unchanged: int


def path() -> Path:
    """The library's file, which exists after the first import."""
    return home() / "library.sqlite"


def read() -> dict[str, Entry]:
    """What was imported, by ``title_key``, in the order of import; nothing before the first.

    Raises ``UserError`` if the file is damaged, ``AssayError`` if it cannot be read.
    """
    if not path().exists():
        return {}
    with _open("rw") as connection:
        return _read(connection) if _is_library(connection) else {}


def add(entries: Iterable[Entry]) -> ImportReport:
    """Add papers by title; what is known of one is kept, and completed by later entries.

    Raises ``UserError`` if the file is damaged, ``AssayError`` if it cannot be written.
    """
    entries = list(entries)
    with _open("rwc") as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            _check_or_create(connection)
            stored = _read(connection)
            merged = dict(stored)
            for entry in entries:
                key = title_key(entry.title)
                merged[key] = _merge(merged[key], entry) if key in merged else entry
            changed = {key: entry for key, entry in merged.items() if entry != stored.get(key)}
            _write(connection, changed)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    distinct = len({title_key(entry.title) for entry in entries})
    added = len(changed.keys() - stored.keys())
    return ImportReport(len(entries), distinct, added, len(changed) - added, distinct - len(changed))


def _merge(old: Entry, new: Entry) -> Entry:
    signed = old if old.authors_count or old.organisation else new
    return dataclasses.replace(
        old,
        authors_count=signed.authors_count,
        organisation=signed.organisation,
        date=clearer(old.date, new.date),
        votes=max(old.votes, new.votes),
    )


def _read(connection: sqlite3.Connection) -> dict[str, Entry]:
    rows = connection.execute(f"SELECT key, {', '.join(_COLUMNS)} FROM imported ORDER BY id")
    return {key: Entry(*values) for key, *values in rows}


def _write(connection: sqlite3.Connection, entries: dict[str, Entry]) -> None:
    places = ", ".join("?" * len(_COLUMNS))
    updates = ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS)
    connection.executemany(
        f"INSERT INTO imported (key, {', '.join(_COLUMNS)}) VALUES (?, {places})"
        f" ON CONFLICT (key) DO UPDATE SET {updates}",
        [(key, *dataclasses.astuple(entry)) for key, entry in entries.items()],
    )


def _is_library(connection: sqlite3.Connection) -> bool:
    """Whether the file holds a library; an empty one does not yet. Raises ``UserError`` for other data."""
    if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        return False
    if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise UserError(f"{path()} is not an assay library; {_GO_ON}")
    if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
        raise UserError(f"{path()} was written by another version of assay; {_GO_ON}")
    return True


def _check_or_create(connection: sqlite3.Connection) -> None:
    if _is_library(connection):
        if connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            raise _damaged()
        return
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute(
        "CREATE TABLE imported (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE,"
        " title TEXT NOT NULL, abstract TEXT NOT NULL, authors_count INTEGER, organisation TEXT,"
        " date TEXT, votes INTEGER NOT NULL)"
    )


@contextlib.contextmanager
def _open(mode: str) -> Iterator[sqlite3.Connection]:
    """A connection without implicit transactions; its errors become one line that says how to go on."""
    try:
        if mode == "rwc":
            path().parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_connect(f"{path().absolute().as_uri()}?mode={mode}")) as connection:
            yield connection
    except sqlite3.Error as error:
        raise _explain(error) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _full() from error
        raise UserError(
            f"cannot keep the library in {path().parent}: {error.strerror}; choose another ASSAY_HOME"
        ) from error


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def _explain(error: sqlite3.Error) -> AssayError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return _damaged()
    if code == sqlite3.SQLITE_FULL:
        return _full()
    if code == sqlite3.SQLITE_BUSY:
        return AssayError(f"{path()} is in use by another process; try again when that has ended")
    return AssayError(f"cannot use the library {path()}: {error}")


def _damaged() -> UserError:
    return UserError(f"{path()} is damaged; {_GO_ON}")


def _full() -> AssayError:
    return AssayError(f"no space left to write {path()}; nothing was imported")
