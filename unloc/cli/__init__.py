"""The command line: one typer app. Commands import the library inside their functions, so that `--help` is fast."""

import logging
import sys
from typing import Annotated, Literal

import typer
from typer import Option

from unloc import __version__
from unloc.errors import UnlocError, one_line

app = typer.Typer(
    name="unloc",
    help="Find when something happens in a video: extract tokens, fit a model, evaluate it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


TokenDtype = Annotated[Literal["float16", "float32", "bfloat16"], Option("--token-dtype", help="Of stored tokens.")]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, Option("--version", help="Print the version.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress and no notes, only results and errors.")] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Also the log: what is done, in detail.")] = False,
) -> None:
    """Options of all commands stand before the command; `--debug` anywhere shows the traceback of an error."""
    if version:
        typer.echo(f"unloc {__version__}")
        raise typer.Exit
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose exclude each other")
    from unloc.cli import progress

    progress.shown_level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING


_UsageError = typer.BadParameter.__bases__[0]  # of the click that typer uses: its own or the installed one


def main() -> None:
    """Run the app: an UnlocError, a usage error, an error of the file system or a full GPU is one line, exit code 2."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        code = app(prog_name="unloc", standalone_mode=False)
        if code == 130:  # how typer reports an interrupt
            message = "interrupted; finished work is kept: run the same command again to continue (fit: with --resume)"
            typer.echo(message, err=True)
        raise SystemExit(code)
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        sys.stdout = None
        raise SystemExit(1) from None
    except _UsageError as error:
        message = error.format_message()
        if "\n" not in message:  # else it is the help text that a command without arguments prints
            command = error.ctx.command_path if error.ctx else "unloc"
            message = f"error: {message.replace('Value error, ', '').rstrip('.')}; see `{command} --help`"
    except (UnlocError, OSError) as error:
        if debug:
            raise
        message = f"error: {' '.join(str(error).splitlines())}"
        if not isinstance(error, UnlocError):
            where = f"{error.filename}: " if error.filename else ""
            message = f"error: {where}{error.strerror or error}; check the path, permissions and free disk space"
    except RuntimeError as error:
        if debug or type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        advice = "`unloc fit` needs less with train.accumulate=4 model.max_texts_in_flight=8 (docs/faq.md)"
        message = f"error: the GPU is out of memory ({one_line(error).split('. ')[0]}); {advice}"
    typer.echo(message, err=True)
    raise SystemExit(2)


from unloc.cli import cache, data, doctor, evaluate, extract, fit, package, predict, report, serve  # noqa: E402, F401  (they register commands)
