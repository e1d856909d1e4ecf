"""The records of the catalogue: one TOML file per area, one table per paper.

[seednorm]                                   # the paper's slug
title   = "SeeDNorm: Self-Rescaled Dynamic Normalization"
arxiv   = "2510.22777"
kind    = "technique"
summary = "RMSNorm with a gain that moves with the input"
treats  = ["residual-growth"]                # keys of symptoms.toml
patch   = { "model.norm" = "seednorm" }      # how it is applied by name; none: not yet. Or one of
                                             # transform = "...", network = "...", diagnostics = ["..."],
                                             # analysis = "NAME ARGUMENTS", command = "WORDS", function = "..."
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from assay.catalog.dates import check_date, check_since, reaches
from assay.catalog.evidence import Scale
from assay.config import Config
from assay.errors import AssayError, UserError, nearest, unknown

Line = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$")]
ArxivNumber = Annotated[str, StringConstraints(pattern=r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})$")]


def _both_scales() -> dict[Scale, dict[str, Any]]:
    return {"cpu": {}, "gpu": {}}


class Claim(Config):
    """One published statement, and how assay measures it.

    ``measure`` names a way of ``assay.claims.ways`` with its options (empty: not measurable here), ``scales`` holds
    what differs at each scale at which it is measured, ``falsified_by`` says what would speak against it. ``seen`` is
    what was known of the outcome here when the rule was written: nothing, unless it says so.
    """

    id: Line
    says: Line
    published: Line
    measure: dict[str, Any] = Field(default_factory=dict)
    scales: dict[Scale, dict[str, Any]] = Field(default_factory=_both_scales)
    falsified_by: Line | None = None
    seen: Line | None = None


class Paper(Config):
    """A record of the catalogue.

    ``area`` is the stem of its file, ``date`` is ISO or ``--MM-DD`` while the year is open, ``treats`` are
    ids of symptoms, ``patch`` maps dotted fields of a run's configuration to values, ``transform`` names one of
    trained models, ``network`` one for images, ``diagnostics`` are those that measure what it measures. ``analysis``
    is what stands after ``assay analyse``, and ``command`` after ``assay`` alone, with words in capitals for what a
    user has; beside a patch it says what the patch needs. ``function`` is the dotted path of what does it in Python,
    where no run of a language model can.
    """

    slug: Slug
    area: str
    title: Line
    arxiv: ArxivNumber | None = None
    authors: Line | None = None
    date: Annotated[str, AfterValidator(check_date)] | None = None
    votes: Annotated[int, Field(ge=0)] = 0
    kind: Literal["technique", "probe", "benchmark", "finding"]
    summary: Line
    treats: tuple[str, ...]
    patch: Annotated[dict[Line, Any], Field(min_length=1)] | None = None
    transform: Line | None = None
    network: Line | None = None
    diagnostics: tuple[Line, ...] = ()
    analysis: Line | None = None
    command: Line | None = None
    function: Line | None = None
    claims: tuple[Claim, ...] = ()

    @property
    def status(self) -> Literal["available", "catalogued"]:
        """``available`` if it can be applied here by name, else ``catalogued``."""
        ways = (
            self.patch,
            self.transform,
            self.network,
            self.diagnostics,
            self.analysis,
            self.command,
            self.function,
        )
        return "available" if any(ways) else "catalogued"

    @model_validator(mode="after")
    def _check_names(self) -> Paper:
        if self.slug == "baseline":
            raise ValueError("'baseline' is the name of the arm without techniques")
        ids = [claim.id for claim in self.claims]
        for position, claim in enumerate(ids):
            if not claim.startswith(f"{self.slug}/") or claim == f"{self.slug}/":
                raise ValueError(f"claim id {claim!r} is not of the form '{self.slug}/NAME'")
            if claim in ids[:position]:
                raise ValueError(f"claim id {claim!r} is used twice")
        return self


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Papers by slug, symptoms (id to one line) and the names of the areas."""

    papers: Mapping[str, Paper]
    symptoms: Mapping[str, str]
    areas: tuple[str, ...]


def papers(area: str | None = None, since: str | None = None) -> list[Paper]:
    """The papers by area and slug; ``since`` (YYYY, YYYY-MM or YYYY-MM-DD) leaves out those of unknown year.

    Raises ``UserError`` for an unknown area, with the nearest, and for a ``since`` that is not a date.
    """
    check_area(area)
    if since is not None:
        check_since(since)
    chosen = [paper for paper in builtin().papers.values() if area in (None, paper.area)]
    return [paper for paper in chosen if reaches(paper.date, since)]


def paper(slug: str) -> Paper:
    """The paper of that slug. Raises ``UserError`` with the nearest slugs."""
    try:
        return builtin().papers[slug]
    except KeyError:
        raise unknown("paper", slug, builtin().papers) from None


def areas() -> list[str]:
    """The names of the areas, sorted."""
    return list(builtin().areas)


def symptoms() -> dict[str, str]:
    """One line of description per symptom id."""
    return dict(builtin().symptoms)


def check_area(area: str | None) -> None:
    """Raises ``UserError`` with the nearest areas if there is no such area."""
    if area is not None and area not in builtin().areas:
        raise unknown("area", area, builtin().areas)


@functools.cache
def builtin() -> Catalog:
    """The catalogue that comes with assay, read once."""
    return read_catalog(files("assay.catalog"))


def read_catalog(folder: Traversable) -> Catalog:
    """All TOML files of ``folder``. Raises ``AssayError`` naming the file and the record that is wrong."""
    tables = {
        entry.name: _read_toml(entry)
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }
    symptoms = tables.pop("symptoms.toml", {})
    for symptom, line in symptoms.items():
        if not isinstance(line, str) or not line.strip():
            raise _malformed("symptoms.toml", symptom, "it is not a line of text")
    read: dict[str, Paper] = {}
    for file, table in tables.items():
        for slug, record in sorted(table.items()):
            if slug in read:
                raise _malformed(file, slug, f"the slug is also used in {read[slug].area}.toml")
            read[slug] = _read_record(file, slug, record, symptoms)
    return Catalog(read, symptoms, tuple(file.removesuffix(".toml") for file in tables))


def _read_toml(entry: Traversable) -> dict[str, Any]:
    try:
        return tomllib.loads(entry.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise AssayError(f"catalogue file {entry.name}: it is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise AssayError(f"catalogue file {entry.name}: not valid TOML: {error}") from None


def _read_record(file: str, slug: str, record: Any, symptoms: Mapping[str, str]) -> Paper:
    if not isinstance(record, dict):
        raise _malformed(file, slug, "it is not a table")
    for derived in ("slug", "area"):
        if derived in record:
            raise _malformed(file, slug, f"{derived!r} follows from the file and cannot be set")
    try:
        paper = Paper.parse({**record, "slug": slug, "area": file.removesuffix(".toml")})
    except UserError as error:
        raise _malformed(file, slug, str(error)) from None
    for symptom in paper.treats:
        if symptom not in symptoms:
            raise _malformed(file, slug, f"unknown symptom {symptom!r}; {nearest(symptom, symptoms)}")
    return paper


def _malformed(file: str, record: str, reason: str) -> AssayError:
    return AssayError(f"catalogue file {file}, record {record!r}: {reason}")
