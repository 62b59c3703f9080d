"""The command line `charlm`: `train`, `sample`, `eval`, `plot`, `bench` and `info`.

Commands import torch and the rest of charlm when they run, so that `--help` and usage errors do not wait for them.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from charlm._version import __version__
from charlm.cli.bench import bench
from charlm.cli.info import info
from charlm.cli.runs import evaluate, plot, sample
from charlm.cli.train import train
from charlm.interrupts import exit_code

# Shows the traceback of an error instead of its message.
DEBUG_VARIABLE = "CHARLM_DEBUG"
EXIT_FAILURE, EXIT_USAGE = 1, 2

# typer gives no name to the class of all its usage errors; BadParameter derives from it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"charlm {__version__}")
        raise typer.Exit


app = typer.Typer(
    help="Train character-level language models, sample from them, and measure them.",
    epilog=f"Errors are one line; {DEBUG_VARIABLE}=1 shows where they come from.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show it.")] = False,
) -> None:
    """Options that belong to no command."""


app.command()(train)
app.command()(sample)
app.command("eval")(evaluate)
app.command()(plot)
app.command()(bench)
app.command()(info)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; None takes them from `sys.argv`.

    Returns:
        The exit code: 0, 2 for usage and bad input, 130 after Ctrl-C, 143 after SIGTERM, 1 for anything else that went
        wrong.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # The name of a file need not be UTF-8: it is printed as it is, byte by byte.
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        code = app(list(arguments) or ["--help"], prog_name="charlm", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except (KeyboardInterrupt, typer.Abort) as interruption:
        # typer turns KeyboardInterrupt into Abort.
        return exit_code(interruption.__cause__ if isinstance(interruption, typer.Abort) else interruption)
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted; the interpreter's last flush must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        message, code = _explain(error)
        # All processes of `torchrun` write to one terminal.
        rank = os.environ.get("RANK", "0")
        print(f"error: {message}" if rank == "0" else f"error (rank {rank}): {message}", file=sys.stderr)
        return code


def _explain(error: Exception) -> tuple[str, int]:
    """The one line that is shown for an error, and its exit code."""
    if isinstance(error, _UsageError):
        return _one_line(error.format_message()), EXIT_USAGE  # type: ignore[attr-defined]
    if isinstance(error, ConnectionError):
        return _one_line(str(error)), EXIT_FAILURE
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}", EXIT_USAGE
    if isinstance(error, (ValueError, OSError, ImportError)):
        return _one_line(str(error)), EXIT_USAGE
    if isinstance(error, ArithmeticError):
        return _one_line(str(error)), EXIT_FAILURE
    return (
        f"{type(error).__name__}: {_one_line(str(error))} (a bug in charlm: please report it with the output of "
        f"`charlm info` and the traceback, which {DEBUG_VARIABLE}=1 shows)"
    ), EXIT_FAILURE


def _one_line(message: str) -> str:
    return " ".join(message.split())
