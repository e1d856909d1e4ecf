"""The command ``assay``: parses, calls the Python function of the same name, prints what it returns."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from assay.errors import AssayError

app = typer.Typer(
    name="assay",
    help="Diagnose neural networks, apply published techniques by name, and compare them fairly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"assay {version('assay')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Diagnose neural networks, apply published techniques by name, and compare them fairly."""


def main() -> None:
    """Entry point. Errors become one line on standard error and an exit status (2: the input, 1: the rest)."""
    from assay.cli import (  # noqa: F401  (they add their commands to ``app``)
        analyse,
        apply,
        claims,
        compare,
        design,
        diagnose,
        papers,
        techniques,
        train,
    )

    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        sys.exit(app(args=arguments, standalone_mode=False) or 0)
    except TyperException as error:
        _explain(error)
    except AssayError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        reason = " ".join(str(error).split()) or "no message"
        typer.echo(f"error: {type(error).__name__}: {reason} (--debug shows the traceback)", err=True)
        sys.exit(1)


def _explain(error: TyperException) -> NoReturn:
    """A wrong option or argument in one line; the help itself where a command was given nothing at all."""
    message = error.format_message()
    if "\n" in message.strip():
        typer.echo(message)
    else:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "assay"
        typer.echo(f"error: {message.rstrip('.')}; see '{path} --help'", err=True)
    sys.exit(error.exit_code)
