"""``assay techniques``: what can be applied by name."""

from __future__ import annotations

import typer

from assay.cli import app
from assay.cli.options import Area, Json
from assay.cli.papers import show_paper
from assay.cli.printing import print_json, print_table

techniques_app = typer.Typer(help="List the techniques that can be applied by name.")
app.add_typer(techniques_app, name="techniques")


@techniques_app.callback(invoke_without_command=True)
def list_techniques(context: typer.Context, area: Area = None, as_json: Json = False) -> None:
    """List the techniques that can be applied by name."""
    if context.invoked_subcommand is not None:
        return
    from assay.catalog.techniques import techniques

    found = techniques(area)
    if as_json:
        print_json([technique.dump() for technique in found])
    elif not found:
        typer.echo("no techniques found")
    else:
        rows = [
            (
                technique.slug,
                technique.area,
                ", ".join(technique.treats),
                technique.summary,
            )
            for technique in found
        ]
        print_table(("technique", "area", "treats", "summary"), rows)


@techniques_app.command()
def show(name: str, as_json: Json = False) -> None:
    """Show one technique: what it treats, how to apply it, and what it claims."""
    from assay.catalog import library
    from assay.catalog.techniques import technique

    show_paper(library.paper(technique(name).slug), as_json)
