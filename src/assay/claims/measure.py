"""Measuring claims: what they are, how each is measured at a scale, and the evidence that comes of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assay.catalog.claims import select
from assay.catalog.evidence import Measurement, Scale, with_measurement
from assay.catalog.records import Claim
from assay.claims.judging import judge, overall
from assay.claims.scales import DEFAULTS
from assay.claims.ways import Way, Work, ways
from assay.config import assign
from assay.errors import AssayError, UserError, unknown
from assay.training import environment


def rule(claim: Claim, scale: Scale, seeds: int | None = None) -> dict[str, Any]:
    """The whole ``measure`` table of a claim at a scale: the scale's defaults, the record's table over them, the
    record's settings for the scale over both, and ``seeds``.

    Raises ``UserError`` if the claim is not measurable, or not at this scale.
    """
    if not claim.measure:
        raise UserError(f"claim {claim.id!r} cannot be measured here: its record does not say how")
    if scale not in claim.scales:
        raise UserError(f"claim {claim.id!r} is not for scale {scale!r}, only for {', '.join(claim.scales)}")
    table: dict[str, Any] = dict(DEFAULTS[scale].get(way_of(claim), {}))
    given: dict[str, Any] = {} if seeds is None else {"seeds": seeds}
    for over in (claim.measure, claim.scales[scale], given):
        run = assign(table.get("run", {}), over.get("run", {}))
        table |= over
        if run:
            table["run"] = run
    return table


def way_of(claim: Claim) -> str:
    """The way that the claim's ``measure`` table names. Raises ``AssayError`` if it names none, or several."""
    named = [name for name in ways if name in claim.measure]
    if len(named) != 1:
        raise AssayError(f"claim {claim.id!r}: 'measure' has to name one way of: {', '.join(ways)}")
    return named[0]


def build_way(claim: Claim, table: Mapping[str, Any]) -> Way:
    """Raises ``AssayError`` for a table that the way does not take."""
    try:
        return ways.build(way_of(claim), table)
    except UserError as error:
        raise AssayError(f"claim {claim.id!r}: {error}") from None


def measure(
    names: Sequence[str] = (),
    *,
    area: str | None = None,
    scale: Scale = "cpu",
    seeds: int | None = None,
    out: str | Path = "evidence",
    work: str | Path = "claims",
    progress: bool = False,
) -> Iterator[tuple[Claim, Measurement]]:
    """Measure claims one after another, and yield each with its measurement, which is then also in ``out/ID.json``.

    ``names`` are ids of claims or slugs of papers. In ``work`` is what was done so far: a call that was stopped goes
    on there, and claims with equal settings share their runs. Claims that have no ``measure`` table, or none for the
    scale, are passed over if they come with an area or a paper.

    Raises ``UserError`` for names that are not known, and for a single claim that cannot be measured.
    """
    if scale not in DEFAULTS:
        raise unknown("scale", scale, DEFAULTS)
    chosen = select(names, area)
    if len(chosen) > 1:
        chosen = [claim for claim in chosen if claim.measure and scale in claim.scales]
        if not chosen:
            raise UserError(f"none of these claims is measurable at scale {scale!r}")
    prepared = [(claim, table := rule(claim, scale, seeds), build_way(claim, table)) for claim in chosen]
    for claim, table, way in prepared:
        yield claim, _measure(claim, table, way, scale, Path(out), Path(work), progress)


def _measure(
    claim: Claim, table: dict[str, Any], way: Way, scale: Scale, out: Path, work: Path, progress: bool
) -> Measurement:
    started = time.monotonic()
    measured = way.measure(Work(work / scale, progress))
    outcomes = judge(measured.values, way.expect, exact=way.exact)
    measurement = Measurement(
        verdict=overall(outcomes),
        outcomes=outcomes,
        values={name: dict(values) for name, values in measured.values.items()},
        measure=table,
        exact=way.exact,
        budget=dict(measured.budget),
        details=dict(measured.details),
        hardware=environment.hardware(),
        versions=environment.versions(),
        commit=_commit(),
        created=datetime.now(UTC),
        seconds=time.monotonic() - started,
    )
    with_measurement(out, claim.id, scale, measurement)
    return measurement


def _commit() -> str | None:
    """The commit of assay's own checkout, with ``+`` if files differ from it; ``None`` outside of one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel"), "src", "assay", "claims") != folder:
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.SubprocessError):
        return None
