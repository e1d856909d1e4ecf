"""``assay analyse``: published analyses by name, one module each."""

from __future__ import annotations

import importlib
import pkgutil

import typer

from assay.cli import app

analyse_app = typer.Typer(help="Look into a network by a published analysis.", no_args_is_help=True)
app.add_typer(analyse_app, name="analyse")

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
