"""The user's library: the catalogue and what was imported from Daily Papers pages, joined by title.

The join is made on reading: a later catalogue that has learnt of an imported paper needs no migration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from assay.catalog import records, store
from assay.catalog.daily_papers import Entry, read_page
from assay.catalog.dates import check_since, clearer, reaches
from assay.catalog.records import Paper
from assay.catalog.store import ImportReport
from assay.catalog.titles import title_key, title_slug
from assay.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class LibraryPaper:
    """A paper of the catalogue (``record``), of an imported page (``entry``), or of both.

    ``status`` is ``available``, ``catalogued``, or ``imported`` if the catalogue does not know it.
    ``authors`` are their names, else how many they are, else the organisation. ``date`` has a year if either
    source gives one, and ``votes`` is the larger number.
    """

    slug: str
    title: str
    area: str | None
    status: str
    authors: str | None
    date: str | None
    votes: int
    summary: str
    abstract: str
    record: Paper | None = dataclasses.field(repr=False)


def import_pages(files: Iterable[str | Path]) -> ImportReport:
    """Import saved Daily Papers pages: all of them or, if anything is wrong, none.

    A paper that is there already keeps what it has and gains what was missing: the larger number of votes, a
    date with a year for one without. Importing a page again changes nothing.

    Raises ``UserError`` naming the page that cannot be used, or the library's file if it is damaged;
    ``AssayError`` if the library cannot be written.
    """
    return store.add([entry for file in files for entry in read_page(file)])


def papers(area: str | None = None, since: str | None = None) -> list[LibraryPaper]:
    """The catalogue by area and slug, then the papers that only the library knows, in the order of import.

    The latter have no area, and slugs made from their titles. ``since`` (YYYY, YYYY-MM or YYYY-MM-DD) leaves
    out papers of unknown year.

    Raises ``UserError`` for an unknown area, with the nearest, for a ``since`` that is not a date, and if the
    library's file is damaged.
    """
    records.check_area(area)
    if since is not None:
        check_since(since)
    imported = store.read()
    joined = [_known(record, imported.pop(title_key(record.title), None)) for record in records.papers()]
    taken = {paper.slug for paper in joined}
    for entry in imported.values():
        joined.append(_imported(title_slug(entry.title, taken), entry))
        taken.add(joined[-1].slug)
    return [paper for paper in joined if area in (None, paper.area) and reaches(paper.date, since)]


def paper(slug: str) -> LibraryPaper:
    """The paper of that slug. Raises ``UserError`` with the nearest slugs."""
    known = {paper.slug: paper for paper in papers()}
    if slug not in known:
        raise unknown("paper", slug, known)
    return known[slug]


def trending(limit: int = 20, since: str | None = None) -> list[LibraryPaper]:
    """The papers with the most votes; among equals the newest first, those of unknown year last."""
    check_limit(limit)
    newest = sorted(papers(since=since), key=lambda p: p.date or "", reverse=True)
    return sorted(newest, key=lambda p: -p.votes)[:limit]


def check_limit(limit: int) -> None:
    """Raises ``UserError`` unless ``limit`` is at least 1."""
    if limit < 1:
        raise UserError(f"limit {limit} would show no paper; it is at least 1")


def _known(record: Paper, entry: Entry | None) -> LibraryPaper:
    return LibraryPaper(
        slug=record.slug,
        title=record.title,
        area=record.area,
        status=record.status,
        authors=record.authors or (_authors(entry) if entry else None),
        date=clearer(record.date, entry.date) if entry else record.date,
        votes=max(record.votes, entry.votes) if entry else record.votes,
        summary=record.summary,
        abstract=entry.abstract if entry else "",
        record=record,
    )


def _imported(slug: str, entry: Entry) -> LibraryPaper:
    return LibraryPaper(
        slug=slug,
        title=entry.title,
        area=None,
        status="imported",
        authors=_authors(entry),
        date=entry.date,
        votes=entry.votes,
        summary="",
        abstract=entry.abstract,
        record=None,
    )


def _authors(entry: Entry) -> str | None:
    if entry.authors_count is None:
        return entry.organisation
    return f"{entry.authors_count} author{'' if entry.authors_count == 1 else 's'}"
