"""``assay claims``: what papers say of their methods, and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from assay.cli import app
from assay.cli.options import Area, Json, Quiet
from assay.cli.printing import print_json, print_table, print_text

if TYPE_CHECKING:
    from assay.catalog.evidence import Evidence, Measurement, Outcome, Scale
    from assay.catalog.records import Claim

claims_app = typer.Typer(help="Show what papers claim, and measure it.", no_args_is_help=True)
app.add_typer(claims_app, name="claims")

Folder = Annotated[
    Path | None, typer.Option("--evidence", metavar="DIR", help="Evidence to read instead of what comes with assay.")
]


@claims_app.command("list")
def list_claims(area: Area = None, evidence: Folder = None, as_json: Json = False) -> None:
    """List the claims, and the verdicts on those that were measured."""
    from assay.catalog.claims import claims

    found = [(claim, _evidence(claim, evidence)) for claim in claims(area)]
    if as_json:
        print_json([_document(claim, known) for claim, known in found])
        return
    print_table(
        ["claim", "cpu", "gpu", "says"],
        [
            [claim.id, _verdict(claim, known, "cpu"), _verdict(claim, known, "gpu"), claim.says]
            for claim, known in found
        ],
    )


@claims_app.command()
def show(
    claim: Annotated[str, typer.Argument(metavar="ID", help="A claim, or a paper for all of its claims.")],
    evidence: Folder = None,
    as_json: Json = False,
) -> None:
    """Show a claim: what the paper says, how it is measured, and what came of it."""
    from assay.catalog.claims import select

    found = [(one, _evidence(one, evidence)) for one in select([claim])]
    if as_json:
        documents = [_document(one, known) for one, known in found]
        print_json(documents[0] if len(documents) == 1 else documents)
        return
    print_text("\n\n".join("\n".join(claim_lines(one, evidence)) for one, _ in found))


@claims_app.command()
def run(
    claims: Annotated[
        list[str] | None, typer.Argument(metavar="[ID|SLUG]...", help="Claims, or papers for all their claims.")
    ] = None,
    area: Annotated[str | None, typer.Option(help="All claims of this area instead.")] = None,
    scale: Annotated[
        Literal["cpu", "gpu"], typer.Option(help="Minutes on two cores, or minutes on a large GPU.")
    ] = "cpu",
    seeds: Annotated[int | None, typer.Option(help="How many seeds instead of the record's.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Where the evidence goes, as ID.json.")] = Path("evidence"),
    work: Annotated[
        Path, typer.Option("--work", help="What is done so far: a run that was stopped goes on from here.")
    ] = Path("claims"),
    quiet: Quiet = False,
) -> None:
    """Measure claims, and write the evidence."""
    from assay.claims.measure import measure

    for claim, measurement in measure(
        claims or (), area=area, scale=scale, seeds=seeds, out=out, work=work, progress=not quiet
    ):
        print_text("\n".join([f"{claim.id}: {measurement.verdict}", *map(_outcome, measurement.outcomes)]))


def _evidence(claim: Claim, folder: Path | None) -> Evidence | None:
    from assay.catalog.evidence import evidence

    return evidence(claim.id, folder)


def _verdict(claim: Claim, known: Evidence | None, scale: Scale) -> str:
    if not claim.measure:
        return "not measurable here"
    if known is not None and scale in known.scales:
        return known.scales[scale].verdict
    return "open" if scale in claim.scales else "–"


def _document(claim: Claim, known: Evidence | None) -> dict[str, Any]:
    measured = known.model_dump(mode="json")["scales"] if known is not None else {}
    return {**claim.dump(), "evidence": measured}


def claim_lines(claim: Claim, evidence: Path | None = None) -> list[str]:
    """What the paper says, how it is measured, and what came of it."""
    known = _evidence(claim, evidence)
    lines = [claim.id, f"  says: {claim.says}", f"  published: {claim.published}"]
    if claim.falsified_by:
        lines.append(f"  falsified by: {claim.falsified_by}")
    if claim.seen:
        lines.append(f"  seen before the rule: {claim.seen}")
    if not claim.measure:
        return [*lines, "  not measurable here"]
    lines.append(f"  measured by: {describe(claim.measure)}")
    for scale in claim.scales:
        measurement = known.scales.get(scale) if known is not None else None
        if measurement is None:
            lines.append(f"  {scale}: open; assay claims run {claim.id} --scale {scale}")
        else:
            lines += [f"  {scale}: {measurement.verdict} ({_circumstances(measurement)})"]
            lines += [f"  {_outcome(outcome)}" for outcome in measurement.outcomes]
    return lines


def _outcome(outcome: Outcome) -> str:
    if outcome.mean is None:
        found = "no finite value"
    elif outcome.low is None or outcome.high is None:
        found = f"{outcome.mean:.4g}, no interval"
    else:
        found = f"{outcome.mean:.4g} ({outcome.low:.4g} to {outcome.high:.4g})"
    return f"  {outcome.quantity}: {found}, expected {outcome.region}: {outcome.verdict}"


def _circumstances(measurement: Measurement) -> str:
    spent = ", ".join(f"{value} {name}" for name, value in measurement.budget.items())
    return ", ".join(part for part in (spent, f"{measurement.created:%Y-%m-%d}") if part)


def describe(measure: dict[str, Any]) -> str:
    """A ``measure`` table in one line."""
    return "; ".join(f"{key} {_words(value)}" for key, value in measure.items())


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
