"""``assay papers``: the catalogue and the papers imported from Daily Papers pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.cli import app
from assay.cli.claims import claim_lines
from assay.cli.options import Area, Json
from assay.cli.printing import print_json, print_table, print_text

if TYPE_CHECKING:
    from assay.catalog.library import LibraryPaper

papers_app = typer.Typer(help="Find papers, and import Daily Papers pages.", no_args_is_help=True)
app.add_typer(papers_app, name="papers")

Since = Annotated[str | None, typer.Option(help="Only papers since YYYY, YYYY-MM or YYYY-MM-DD.")]
Limit = Annotated[int, typer.Option(help="The most papers to show.")]


@papers_app.command("import")
def import_pages(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Pages saved as text.")],
) -> None:
    """Import Daily Papers pages: all of them or, if one cannot be read, none."""
    from assay.catalog import library

    report = library.import_pages(files)
    typer.echo(
        f"{report.entries} entries, {report.distinct} papers: "
        f"{report.added} added, {report.updated} updated, {report.unchanged} unchanged"
    )


@papers_app.command("list")
def list_papers(area: Area = None, since: Since = None, as_json: Json = False) -> None:
    """List the papers by area."""
    from assay.catalog import library

    _show_papers(library.papers(area, since), as_json)


@papers_app.command()
def search(
    query: Annotated[list[str], typer.Argument(metavar="QUERY", help="Words; the last may be a beginning.")],
    area: Area = None,
    since: Since = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """Search titles, summaries and abstracts, best first."""
    from assay.catalog.search import search as ranked

    hits = ranked(" ".join(query), area, since, limit)
    if as_json:
        print_json([{**_brief(hit.paper), "score": hit.score} for hit in hits])
    else:
        _show_papers([hit.paper for hit in hits], as_json=False)


@papers_app.command()
def trending(since: Since = None, limit: Limit = 20, as_json: Json = False) -> None:
    """List the papers with the most votes."""
    from assay.catalog import library

    _show_papers(library.trending(limit, since), as_json)


@papers_app.command()
def show(slug: str, as_json: Json = False) -> None:
    """Show one paper: what it treats, how to apply it, and what it claims."""
    from assay.catalog import library

    show_paper(library.paper(slug), as_json)


def show_paper(paper: LibraryPaper, as_json: bool) -> None:
    """Print all that is known of one paper."""
    from assay.catalog import symptoms

    document = _full(paper)
    if as_json:
        print_json(document)
        return
    origin = [
        paper.authors,
        paper.date,
        document["arxiv"] and f"arXiv:{document['arxiv']}",
        f"{paper.votes} vote{'' if paper.votes == 1 else 's'}",
    ]
    kind = [paper.area, document["kind"], paper.status]
    lines = [
        paper.title,
        " · ".join(part for part in origin if part),
        f"{paper.slug} ({', '.join(part for part in kind if part)})",
    ]
    lines += ["", paper.summary] if paper.summary else []
    lines += _section("Treats", [f"{symptom}: {symptoms()[symptom]}" for symptom in document["treats"]])
    lines += _section("Apply", _how_to_apply(document))
    claims = paper.record.claims if paper.record else ()
    lines += _section("Claims", [line for claim in claims for line in claim_lines(claim)])
    lines += _section("Abstract", [paper.abstract] if paper.abstract else [])
    print_text("\n".join(lines))


def _show_papers(papers: Sequence[LibraryPaper], as_json: bool) -> None:
    if as_json:
        print_json([_brief(paper) for paper in papers])
    elif not papers:
        typer.echo("no papers found")
    else:
        print_table(
            ("paper", "area", "date", "votes", "title"),
            [(p.slug, p.area or "-", p.date or "-", str(p.votes or "-"), p.title) for p in papers],
        )


def _brief(paper: LibraryPaper) -> dict[str, Any]:
    return {
        "slug": paper.slug,
        "title": paper.title,
        "area": paper.area,
        "status": paper.status,
        "date": paper.date,
        "votes": paper.votes,
        "summary": paper.summary,
    }


def _full(paper: LibraryPaper) -> dict[str, Any]:
    from assay.catalog.techniques import commands

    record = paper.record
    return {
        **_brief(paper),
        "authors": paper.authors,
        "abstract": paper.abstract,
        "arxiv": record and record.arxiv,
        "kind": record and record.kind,
        "treats": list(record.treats) if record else [],
        "patch": record and record.patch,
        "transform": record and record.transform,
        "network": record and record.network,
        "apply": commands(record) if record else [],
        "claims": [claim.dump() for claim in record.claims] if record else [],
    }


def _how_to_apply(document: dict[str, Any]) -> list[str]:
    if document["transform"]:
        return [*document["apply"], f"transform {document['transform']!r}: changes a trained model"]
    if document["network"]:
        return [*document["apply"], f"network {document['network']!r} for images: assay.models.vision.networks"]
    return document["apply"] or ["cannot be applied here yet"]


def _section(heading: str, lines: list[str]) -> list[str]:
    return ["", heading, *(f"  {line}" for line in lines)] if lines else []
