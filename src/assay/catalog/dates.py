"""Dates of papers: ISO ``2025-10-26``, or ``--10-26`` while the year is open.

Both compare as text, in which an open date comes before every year.
"""

from __future__ import annotations

import datetime
import re

from assay.errors import UserError

_LEAP_YEAR = 2000


def check_date(text: str) -> str:
    """``text`` itself. Raises ``ValueError`` unless it is a day of the calendar in one of the two forms."""
    match = re.fullmatch(r"(?:(\d{4})|-)-(\d\d)-(\d\d)", text, re.ASCII)
    if not match:
        raise ValueError(f"{text!r} is neither YYYY-MM-DD nor --MM-DD")
    year, month, day = match.groups()
    datetime.date(int(year) if year else _LEAP_YEAR, int(month), int(day))
    return text


def has_year(date: str | None) -> bool:
    return date is not None and not date.startswith("-")


def clearer(first: str | None, second: str | None) -> str | None:
    """The first of two dates that has a year, else the first that is a date at all."""
    return next((date for date in (first, second) if has_year(date)), first or second)


def check_since(since: str) -> str:
    """``since`` itself. Raises ``UserError`` unless it is YYYY, YYYY-MM or YYYY-MM-DD."""
    try:
        if re.fullmatch(r"\d{4}(-\d\d){0,2}", since, re.ASCII):
            check_date(since + "-01-01"[len(since) - 4 :])
            return since
    except ValueError:
        pass
    raise UserError(f"since {since!r} is not a date; write YYYY, YYYY-MM or YYYY-MM-DD")


def reaches(date: str | None, since: str | None) -> bool:
    """Whether ``date`` is at or after ``since``; never, if its year is open."""
    return since is None or (date or "") >= since
