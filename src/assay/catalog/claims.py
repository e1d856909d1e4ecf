"""The claims of the catalogue's papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from assay.catalog import records
from assay.catalog.records import Claim, Paper
from assay.errors import UserError, unknown


def claims(area: str | None = None) -> list[Claim]:
    """All claims of the catalogue, or of one area. Raises ``UserError`` for an unknown area."""
    return [claim for paper in records.papers(area) for claim in paper.claims]


def select(names: Sequence[str] = (), area: str | None = None) -> list[Claim]:
    """Claims by id, by paper, or by area. Raises ``UserError`` with the nearest for one that is unknown."""
    if area is not None:
        if names:
            raise UserError("name claims or papers, or an area with --area, not both")
        return claims(area)
    found: dict[str, Claim] = {}
    for name in names:
        found |= {claim.id: claim for claim in _named(name)}
    if not found:
        raise UserError("nothing to measure: name claims or papers, or an area with --area")
    return list(found.values())


def _named(name: str) -> list[Claim]:
    known = {claim.id: claim for claim in claims()}
    if name in known:
        return [known[name]]
    papers: Mapping[str, Paper] = records.builtin().papers
    if "/" in name or name not in papers:
        raise unknown("claim", name, [*known, *papers])
    if not papers[name].claims:
        raise UserError(f"{name!r} has no claim in the catalogue yet")
    return list(papers[name].claims)
