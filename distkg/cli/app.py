"""Typer application of the commands: errors, exit codes, and shared options."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from distkg.cli.errors import explain
from distkg.cli.streams import (
    READER_GONE,
    exit_code_after_flush,
    reader_gone,
    silence,
    write_anything,
)
from distkg.printable import printable_json, printable_lines
from distkg.redaction import redact
from distkg.termination import run_until_signal
from distkg.torch_variables import set_torch_variables

if TYPE_CHECKING:
    from distkg.config import RunConfig
    from distkg.data.assemble import PrepareReport

LARGEST_SEED = 2**63 - 1

# typer has its own click or uses the installed one, so the base class of usage errors is looked up, not imported.
USAGE_ERROR: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Split(StrEnum):
    train = "train"
    valid = "valid"
    test = "test"


def folder_path(text: str) -> Path:
    """Parse an option or argument that names a folder; an address such as ``s3://…`` is refused before anything starts.

    Every parameter that takes a path is parsed here, by `folder_address` or by `file_path`: :class:`pathlib.Path` alone
    makes ``s3:/…`` of an address, which is a local folder.
    """
    return _local_path(text, "folder")


def folder_address(text: str) -> str:
    """Parse an option or argument that names a folder by its path, or by its address in an object store."""
    from distkg.data.storage.objects import is_address

    return text if is_address(text) else str(folder_path(text))


def file_path(text: str) -> Path:
    """Parse an option or argument that names a file, as `folder_path` does."""
    return _local_path(text, "file")


def _local_path(text: str, kind: str) -> Path:
    from distkg.data.storage.local_path import NotLocalError, local_path

    try:
        return local_path(text, kind=kind)
    except NotLocalError as error:
        raise typer.BadParameter(str(error)) from None


class Commands(TyperGroup):
    """Command group that prints every error as one message (``distkg.cli.errors``); with ``--debug``, its traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with printable_usage_errors():
            _refuse_unreadable(args, ctx)
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with printable_usage_errors():
                return super().invoke(ctx)
        except (USAGE_ERROR, typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            if not reader_gone():
                raise
            silence()
            raise SystemExit(READER_GONE) from None
        except Exception as error:
            if _debugging(ctx):
                raise
            raise SystemExit(_report(error)) from None


@contextmanager
def printable_usage_errors() -> Iterator[None]:
    """Print errors about options and arguments without secrets, in printable characters."""
    try:
        yield
    except USAGE_ERROR as error:
        error.message = printable_lines(redact(error.message))
        raise


app = typer.Typer(
    name="distkg",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Example: distkg prepare data/wn18rr --store stores/wn18rr && "
    "distkg train preset:complex_wn18rr --run runs/wn18rr --set data.store=stores/wn18rr",
)

StoreOption = Annotated[str, typer.Option("--store", help="Folder or address (s3://…) of the store to write.")]
RunArgument = Annotated[
    str,
    typer.Argument(
        parser=folder_address, metavar="RUN", help="Run folder that `distkg train` wrote, or its address (s3://…)."
    ),
]
_CONFIG = typer.Argument(metavar="CONFIG", help="YAML file, its address (s3://…), or preset:NAME.")
ConfigArgument = Annotated[str, _CONFIG]
OptionalConfigArgument = Annotated[str | None, _CONFIG]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Set one key of CONFIG; may be repeated, and the last value of a key is used.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Number of training workers; short for --set train.workers=W.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``distkg`` with these arguments (default: those of the process) and exit.

    Exit codes: 0 on success, 2 after a mistake that the user can correct, 3 if a plan refuses the run, 141 if the
    reader of the output has closed the pipe, 128 plus its number after a signal (130 for Ctrl-C, 143 for SIGTERM), and
    1 otherwise.
    """
    set_torch_variables()
    sys.excepthook = show_traceback
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    write_anything()
    try:
        run_until_signal(lambda: app(args=None if argv is None else list(argv), prog_name="distkg"))
    except SystemExit as end:
        sys.exit(exit_code_after_flush(end.code))
    except OSError as error:  # printing the help failed, before any command
        sys.exit(_report(error))
    sys.exit(exit_code_after_flush(0))


def _version(wanted: bool) -> None:
    if wanted:
        from distkg import __version__

        typer.echo(f"distkg {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Knowledge-graph completion at scale: train, evaluate and query embeddings and foundation models on Ray."""


def resolved(config: str, changes: list[str] | None, workers: int | None) -> RunConfig:
    """Return the configuration of CONFIG with changes; a file at an address is read once."""
    from distkg.config import load_config, load_config_content

    overrides = [*(changes or []), *([f"train.workers={workers}"] if workers else [])]
    if "://" not in config:
        return load_config(config, overrides)
    from distkg.data.storage.location import read_file, without_secrets
    from distkg.documents import MAX_BYTES

    return load_config_content(read_file(config, MAX_BYTES + 1), without_secrets(config), overrides)


class PrintableFormatter(logging.Formatter):
    """Formatter of warnings of distkg and its libraries, without the secrets of addresses, in printable characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(redact(super().format(record)))


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, without the secrets of addresses, in printable characters."""
    sys.stderr.write(printable_lines(redact("".join(traceback.format_exception(kind, error, trace)))))


def say(text: object, *, err: bool = False) -> None:
    """Print lines that may hold labels, paths or messages of libraries; unprintable characters are escaped."""
    typer.echo(printable_lines(str(text)), err=err)


def say_json(value: Any) -> None:
    """Print a value as JSON, for scripts, in printable characters."""
    typer.echo(printable_json(value))


def show_table(table: Any) -> None:
    from distkg.reporting.tables import make_console

    try:
        make_console().print(table)
    except SystemExit:  # rich exits if the reader of its output has closed the pipe
        raise SystemExit(READER_GONE) from None


def _report(error: BaseException) -> int:
    """Print the message of an error and return the exit code."""
    message, code = explain(error)
    say(redact(f"error: {message}"), err=True)
    return code


def _refuse_unreadable(arguments: Sequence[str], ctx: Any) -> None:
    """Refuse an argument that cannot be a file name, label or number."""
    for position, argument in enumerate(arguments, 1):
        problem = ""
        if "\0" in argument:
            problem = "a null byte"
        elif not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
            problem = "bytes that are no text in this locale; write it as UTF-8"
        if problem:
            raise typer.BadParameter(f"argument {position} ({argument!r}) holds {problem}", ctx)


def print_remarks(report: PrepareReport) -> None:
    """Print notes on how the files of a graph were read, and warnings with their counts."""
    from distkg.data.readers.problems import warning_text
    from distkg.printable import printable

    for note in report.notes:
        typer.echo(f"note: {printable(note)}", err=True)
    for warning, count in report.warnings.items():
        typer.echo(f"warning: {printable(warning_text(warning, count, report.examples.get(warning)))}", err=True)


def _debugging(ctx: Any) -> bool:
    return bool(ctx.params.get("debug")) or os.environ.get("DISTKG_DEBUG", "") not in ("", "0")
