"""Techniques: papers that can be applied by name; and arms, which join them by ``+``.

baseline                      the configuration as it is
peri-ln+gated-attention       both patches, in any order
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from assay.catalog import records
from assay.catalog.records import Paper
from assay.config import parse_assignment
from assay.errors import UserError, unknown

BASELINE = "baseline"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One configuration within a comparison: dotted fields to set, and the techniques that set them."""

    name: str
    techniques: tuple[str, ...]
    patch: Mapping[str, Any] = dataclasses.field(hash=False)


def techniques(area: str | None = None) -> list[Paper]:
    """The papers that can be applied by name. Raises ``UserError`` for an unknown area."""
    return [paper for paper in records.papers(area) if paper.status == "available"]


def technique(name: str) -> Paper:
    """The technique of that name.

    Raises ``UserError`` with the nearest, or saying that the paper is known but not applicable yet.
    """
    available = {paper.slug: paper for paper in techniques()}
    if name in available:
        return available[name]
    if name in records.builtin().papers:
        raise UserError(f"{name!r} is catalogued but cannot be applied yet; `assay techniques` lists what can")
    raise unknown("technique", name, available)


def parse_arm(text: str) -> Arm:
    """``"baseline"``, or techniques joined by ``+``; their order changes neither patch nor meaning.

    Raises ``UserError`` for an empty part, a technique that is unknown, given twice or a transform,
    ``baseline`` joined to anything, and two techniques that set one field to different values.
    """
    names = tuple(part.strip() for part in text.split("+"))
    if not all(names):
        raise UserError(f"arm {text!r} has an empty part; write techniques joined by '+', or {BASELINE!r}")
    if names == (BASELINE,):
        return Arm(BASELINE, (), {})
    if BASELINE in names:
        raise UserError(f"arm {text!r}: {BASELINE!r} is the arm without techniques and cannot be joined to any")
    for position, name in enumerate(names):
        if name in names[:position]:
            raise UserError(f"arm {text!r} names {name!r} twice")
    return Arm("+".join(names), names, _merge({name: _patch_of(name) for name in names}))


def commands(paper: Paper) -> list[str]:
    """The shell commands that apply a transform to a model, measure it, or train and compare with a patch.

    For what is called from Python it is the import.
    """
    found = []
    if paper.transform is not None:
        found.append(f"assay apply {paper.slug} MODEL --text FILE --out DIR")
    if paper.diagnostics:
        found.append(f"assay diagnose MODEL --only {','.join(paper.diagnostics)} --out DIR")
    if paper.analysis is not None:
        found.append(f"assay analyse {paper.analysis}")
    if paper.command is not None:
        found.append(f"assay {paper.command}")
    if paper.function is not None:
        module, _, name = paper.function.rpartition(".")
        found.append(f"python: from {module} import {name}")
    if paper.patch is None or paper.command is not None:
        return found
    settings = " ".join(f"--set {shlex.quote(f'{f}={_argument(v)}')}" for f, v in sorted(paper.patch.items()))
    return [*found, f"assay train {settings}", f"assay compare --arms {BASELINE},{paper.slug}"]


def _patch_of(name: str) -> dict[str, Any]:
    paper = technique(name)
    if paper.patch is None:
        raise UserError(f"{name!r} is {_what(paper)} and cannot be an arm of a training comparison")
    return paper.patch


def _what(paper: Paper) -> str:
    if paper.transform is not None:
        return "a transform of trained models"
    if paper.diagnostics or paper.analysis:
        return "a measurement"
    return "a network for images" if paper.network else f"not a change of the configuration ({commands(paper)[0]})"


def _merge(patches: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, patch in patches.items():
        for field, value in patch.items():
            for other, owner in owners.items():
                if not _agree(field, value, other, merged[other]):
                    raise UserError(
                        f"{owner!r} and {name!r} cannot be joined: both set {min(field, other, key=len)!r}, "
                        f"to {merged[other]!r} and to {value!r}"
                    )
            merged[field] = value
            owners.setdefault(field, name)
    return dict(sorted(merged.items()))


def _agree(field: str, value: Any, other: str, other_value: Any) -> bool:
    """Whether two settings can stand side by side; a slot holding only a name agrees with options for it."""
    if field == other:
        return bool(value == other_value)
    if len(field) > len(other):
        field, value, other, other_value = other, other_value, field, value
    if not other.startswith(f"{field}."):
        return True
    for part in other.removeprefix(f"{field}.").split("."):
        table = {"name": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping):
            return False
        if part not in table:
            return True
        value = table[part]
    return bool(value == other_value)


def _argument(value: Any) -> str:
    """``value`` as ``parse_assignment`` reads it back: a bare word where that is enough, else TOML."""
    if isinstance(value, str) and parse_assignment(f"x={value}")[1] == value:
        return value
    return _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
