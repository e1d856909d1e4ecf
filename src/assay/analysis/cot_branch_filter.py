"""Branches in reasoning traces: how often a trace turns to something else, and training data without the worst.

    branching(trace) = steps with a word that opens an alternative / steps
    filter: the share ``keep`` of the traces that branch least

Steps are separated by blank lines, or by line ends where there are none; the answer behind #### at the end of a
GSM8K trace is none. A word counts only whole and as it is written, and a step once. Of the paper's words we know
Perhaps, Another and Alternatively; its whole list was not found, and another teacher needs another list.

Li, Xi, Chen, Wang, Jiang, Shen, Song, Wei, Lian, 2026, arXiv:2604.01702.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from assay.data.reading import decode, read
from assay.errors import UserError, nearest

KEYWORDS = ("Perhaps", "Another", "Alternatively")

_ANSWER = re.compile(r"(?:^|\n)####[^\n]*\s*\Z")


def steps(trace: str) -> list[str]:
    """The steps of a trace; none of them is blank."""
    trace = _ANSWER.sub("", trace)
    paragraphs = [step.strip() for step in re.split(r"\n[^\S\n]*\n", trace) if step.strip()]
    if len(paragraphs) > 1:
        return paragraphs
    return [line.strip() for line in trace.split("\n") if line.strip()]


def branching(trace: str | Sequence[str], keywords: Sequence[str] = KEYWORDS) -> float:
    """The share of steps that hold a keyword; 0 for an empty trace. A list is taken as the steps themselves.

    Raises ``UserError`` without keywords.
    """
    if not keywords or not all(keywords):
        raise UserError("no keywords to look for; give words that open an alternative, such as Perhaps")
    found = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, keywords))})(?!\w)")
    parts = steps(trace) if isinstance(trace, str) else trace
    return sum(1 for step in parts if found.search(step)) / len(parts) if parts else 0.0


def step_difference(trace: str, other: str) -> float:
    """(n − m) / m for n steps against m of another teacher's trace of the same problem: above 0 if longer.

    Raises ``UserError`` if the other trace is empty.
    """
    if not steps(other):
        raise UserError("the other trace has no step; leave the pair out")
    return (len(steps(trace)) - len(steps(other))) / len(steps(other))


def keep_least(scores: Sequence[float], keep: float) -> list[int]:
    """Indices, ascending, of the ⌈keep · n⌉ lowest scores; of equal ones the first.

    Raises ``UserError`` unless 0 < keep ≤ 1.
    """
    if not 0 < keep <= 1:
        raise UserError(f"keep={keep} is no share of the traces to keep; give one above 0 and at most 1")
    count = math.ceil(keep * len(scores) - 1e-9)
    return sorted(sorted(range(len(scores)), key=lambda place: scores[place])[:count])


@dataclasses.dataclass(frozen=True)
class Transitions:
    """``shares`` of each label among all steps; ``following[a][b]``: how often b comes after a, of all after a."""

    shares: dict[str, float]
    following: dict[str, dict[str, float]]


def transitions(traces: Sequence[Sequence[str]]) -> Transitions:
    """Of traces whose steps somebody labelled, such as Propose and Deduce. A trace's last step has no successor."""
    labels = Counter(label for trace in traces for label in trace)
    pairs = Counter(pair for trace in traces for pair in pairwise(trace))
    left = Counter(label for trace in traces for label in trace[:-1])
    return Transitions(
        shares={label: count / labels.total() for label, count in sorted(labels.items())},
        following={
            first: {second: count / left[first] for (one, second), count in sorted(pairs.items()) if one == first}
            for first in sorted(left)
        },
    )


def read_traces(path: Path, field: str) -> tuple[list[str], list[str]]:
    """The lines of a file of JSON objects, and the string under ``field`` of each.

    Raises ``UserError`` for a line without it, and for a file without lines.
    """
    text = decode(read(path))
    if text is None:
        raise UserError(f"{str(path)!r} is no UTF-8 text")
    lines, traces = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{str(path)!r}, line {number}"
        try:
            record: Any = json.loads(line)
        except ValueError:
            raise UserError(f"{where}: no JSON; each line is one object") from None
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            known = nearest(field, record) if isinstance(record, dict) else "an object is wanted"
            raise UserError(f"{where}: no string under the key {field!r}; {known}")
        lines.append(line)
        traces.append(record[field])
    if not lines:
        raise UserError(f"{str(path)!r} has no traces; write one JSON object a line")
    return lines, traces
