"""What goes wrong, in one readable line.

The command prints the line and leaves with ``exit_status``; a Python caller catches ``AssayError``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AssayError(Exception):
    """A failure that is not the user's doing: no space left, a worker that died."""

    exit_status = 1


class UserError(AssayError, ValueError):
    """Something the user gave cannot be used; the message says what was wrong and what would do."""

    exit_status = 2


class Interrupted(AssayError):
    """Stopped by Ctrl-C with everything saved; the message says how to go on."""

    exit_status = 130


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names closest to ``name``, ready to stand in a message.

    >>> nearest("seednrm", ["seednorm", "rms-norm"])
    'nearest: seednorm'
    """
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(close)}"
    shown = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return f"known: {shown}" if choices else "none are known"


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among the known ones."""
    return UserError(f"unknown {kind} {name!r}; {nearest(name, known)}")
