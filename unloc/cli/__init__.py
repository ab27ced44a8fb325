"""The command line: one typer app, the only part that knows every other. Imports of the parts stand inside commands."""

import sys
from typing import Annotated

import typer

from unloc import __version__
from unloc.errors import UnlocError

app = typer.Typer(
    name="unloc",
    help="Find when something happens in a video: extract tokens, fit a model, evaluate it, predict moments.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"unloc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands; `--debug` anywhere on the line shows the traceback of an error."""


_UsageError = typer.BadParameter.__bases__[0]  # of typer's own click or of the installed one, by its version


def main() -> None:
    """Entry point: runs the app; every UnlocError, wrong usage and refusing disk is one line and exit code 2."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        code = app(standalone_mode=False)
    except UnlocError as error:
        if debug:
            raise
        typer.echo(f"error: {' '.join(str(error).splitlines())}", err=True)
        raise SystemExit(2) from None
    except BrokenPipeError:  # whoever read the output has had enough
        sys.stdout = None
        raise SystemExit(1) from None
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {where}{error.strerror or error}; check the path, its rights and its disk", err=True)
        raise SystemExit(2) from None
    except _UsageError as error:
        _print_usage_error(error)
        raise SystemExit(2) from None
    if code == 130:  # typer's answer to an interrupt
        typer.echo("interrupted; what is finished is kept, the same command goes on (fit: with --resume)", err=True)
    raise SystemExit(code)


def _print_usage_error(error: Exception) -> None:
    words = error.format_message()
    if "\n" in words:  # a command without arguments answers with its help
        typer.echo(words, err=True)
    else:
        command = error.ctx.command_path if error.ctx else "unloc"
        typer.echo(f"error: {words.rstrip('.')}; see `{command} --help`", err=True)


from unloc.cli import cache, cache_import, data, data_pack, evaluate, extract, fit  # noqa: E402, F401  (they register their commands)
