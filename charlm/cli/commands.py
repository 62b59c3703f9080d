"""The commands, and the program that they are parts of.

Commands import torch and the rest of charlm when they run, so that `--help` and usage errors do not wait for them.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from charlm._version import __version__
from charlm.cli.bench import bench
from charlm.cli.info import info
from charlm.cli.options import CheckedCommand
from charlm.cli.runs import evaluate, plot, sample
from charlm.cli.train import train
from charlm.interrupts import exit_code

# typer gives no name to the class of all its usage errors; BadParameter derives from it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class Interrupted(Exception):
    """Ctrl-C, or another signal, in a command that has nothing to say about it.

    Attributes:
        exit_code: of the program.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


class _Program(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            # typer would end the program without a word.
            raise Interrupted(exit_code(interruption)) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"charlm {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Program,
    help="Train character-level language models, sample from them, and measure them.",
    epilog="Errors are one line; CHARLM_DEBUG=1 shows where they come from.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show it.")] = False,
) -> None:
    """Options that belong to no command."""


app.command(cls=CheckedCommand)(train)
app.command(cls=CheckedCommand)(sample)
app.command("eval", cls=CheckedCommand)(evaluate)
app.command(cls=CheckedCommand)(plot)
app.command(cls=CheckedCommand)(bench)
app.command(cls=CheckedCommand)(info)
