"""Daily Papers pages of Hugging Face, saved as text.

Daily Papers                      everything above this line is ignored

byAK and the research community

Jun 9                             the page's own date, mostly without a year

A Title                           then its abstract, one paragraph each

An abstract.

  • 6 authors                     or an organisation; the whole block may be missing
·
Oct 17, 2024 3                    no year: the page's own year; then the votes, '-' or nothing
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from assay.catalog.dates import check_date
from assay.errors import UserError

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(rf"({'|'.join(_MONTHS)}) (\d{{1,2}})(?:, (\d{{4}}))?(?:\s+(\d+|-))?", re.ASCII)
_BYLINE = re.compile(r"by\s*AK\b.*")
_AUTHORS = re.compile(r"(?:•\s*)?(\d+) authors?", re.ASCII)
_LONGEST_TITLE = 300


@dataclasses.dataclass(frozen=True)
class Entry:
    """One paper on a page; ``date`` is ISO, or ``--MM-DD`` where the page leaves the year open."""

    title: str
    abstract: str
    authors_count: int | None = None
    organisation: str | None = None
    date: str | None = None
    votes: int = 0


@dataclasses.dataclass(frozen=True)
class _Paragraph:
    line: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.lines)


def read_page(path: str | Path) -> list[Entry]:
    """The entries of a page in a file, in its order.

    Raises ``UserError`` naming the file if it cannot be read or is not a page of this form.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{str(path)!r} is not a Daily Papers page: it is not UTF-8 text") from None
    try:
        return parse_page(text)
    except UserError as error:
        raise UserError(f"{str(path)!r} is not a Daily Papers page: {error}") from None


def parse_page(text: str) -> list[Entry]:
    """The entries of a page. Raises ``UserError`` with the line that is not of this form."""
    if "\0" in text:
        raise UserError("it is a binary file")
    if text.lstrip().startswith("<"):
        raise UserError("it is HTML; save the page as text")
    today, body = _split_header(_paragraphs(text))
    entries: list[Entry] = []
    pending: list[_Paragraph] = []
    for paragraph in body:
        if "·" in paragraph.lines:
            entries += _entries(pending, _details(paragraph, today), paragraph.line)
            pending = []
        else:
            pending.append(paragraph)
    if not entries:
        raise UserError("no paper with its date follows the line 'Daily Papers'")
    return entries + _entries(pending, {}, pending[0].line if pending else 0)


def _paragraphs(text: str) -> list[_Paragraph]:
    paragraphs: list[_Paragraph] = []
    lines: list[str] = []
    for number, line in enumerate([*re.split(r"\r\n|\n|\r", text), ""], start=1):
        if cleaned := " ".join("".join(c if c.isprintable() else " " for c in line).split()):
            lines.append(cleaned)
        elif lines:
            paragraphs.append(_Paragraph(number - len(lines), tuple(lines)))
            lines = []
    return paragraphs


def _split_header(paragraphs: list[_Paragraph]) -> tuple[str | None, list[_Paragraph]]:
    """The page's own date, if it states one with a year, and what follows the header."""
    texts = [paragraph.text for paragraph in paragraphs]
    if "Daily Papers" not in texts:
        raise UserError("it has no line 'Daily Papers'")
    body = paragraphs[texts.index("Daily Papers") + 1 :]
    if body and _BYLINE.fullmatch(body[0].text):
        body = body[1:]
    stated = _DATE.fullmatch(body[0].text) if body else None
    if stated is None:
        return None, body
    return (_date(stated, None, body[0].line) if stated[3] else None), body[1:]


def _entries(pending: list[_Paragraph], details: dict[str, Any], line: int) -> list[Entry]:
    """Titles and abstracts in turn; ``details`` belong to the last pair, and the others have none."""
    parts = [p for i, p in enumerate(pending) if i == 0 or p.text != pending[i - 1].text]
    if len(parts) % 2 or (details and not parts):
        raise UserError(f"line {parts[-1].line if parts else line}: expected a title and one paragraph of abstract")
    entries: list[Entry] = []
    for title, abstract in zip(parts[::2], parts[1::2], strict=True):
        if len(title.text) > _LONGEST_TITLE:
            raise UserError(f"line {title.line}: expected a title, found {len(title.text)} characters of text")
        entries.append(Entry(title.text, abstract.text))
    if details:
        entries[-1] = dataclasses.replace(entries[-1], **details)
    return entries


def _details(paragraph: _Paragraph, today: str | None) -> dict[str, Any]:
    """Authors, date and votes, as keyword arguments of ``Entry``."""
    dated = _DATE.fullmatch(paragraph.lines[-1])
    if len(paragraph.lines) != 3 or paragraph.lines[1] != "·" or not dated:
        raise UserError(f"line {paragraph.line}: expected authors, '·' and a date, found {paragraph.text[:60]!r}")
    counted = _AUTHORS.fullmatch(paragraph.lines[0])
    return {
        "authors_count": int(counted[1]) if counted else None,
        "organisation": None if counted else _organisation(paragraph.lines[0]),
        "date": _date(dated, today, paragraph.line + 2),
        "votes": int(dated[4]) if dated[4] and dated[4] != "-" else 0,
    }


def _date(match: re.Match[str], today: str | None, line: int) -> str:
    """ISO if the year is stated, or follows from ``today``, before which every paper on the page appeared."""
    month_day = f"-{_MONTHS.index(match[1]) + 1:02}-{int(match[2]):02}"
    try:
        check_date((match[3] or "-") + month_day)
    except ValueError:
        raise UserError(f"line {line}: {match[0]!r} is not a date") from None
    if match[3]:
        return match[3] + month_day
    if today is not None and month_day <= today[4:]:
        try:
            return check_date(today[:4] + month_day)
        except ValueError:
            pass
    return "-" + month_day


def _organisation(line: str) -> str:
    """``"moonshotai Moonshot AI"`` as ``"Moonshot AI"``: the account is left out where the name spells it."""
    account, _, name = line.partition(" ")
    spelled = ["".join(filter(str.isalnum, text.casefold())) for text in (account, name)]
    return name.strip() if spelled[0] and spelled[1].startswith(spelled[0]) else line
