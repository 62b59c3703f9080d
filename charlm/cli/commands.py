"""The commands, and the program that they are parts of.

Commands import torch and the rest of charlm when they run, so that `--help` and usage errors do not wait for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from charlm._version import __version__
from charlm.cli import startup
from charlm.cli.bench import bench
from charlm.cli.evaluate import evaluate
from charlm.cli.info import info
from charlm.cli.options import check_rules
from charlm.cli.plot import plot
from charlm.cli.sample import sample
from charlm.cli.train import train
from charlm.interrupts import exit_code

# typer gives no name to the class of all its usage errors; BadParameter derives from it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


# What commands import before they do anything. An optimizer of torch imports its compiler.
_IMPORTED = {
    "train": ("charlm.training_run", "torch._dynamo"),
    "sample": ("charlm.checkpoint", "charlm.sampler"),
    "eval": ("charlm.checkpoint", "charlm.evaluation"),
    "plot": ("charlm.checkpoint", "charlm.plots"),
    "bench": ("charlm.benchmark", "torch._dynamo"),
}


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


class _Command(TyperCommand):
    """A command each of whose options is held to the rule for its name, before what takes time is imported."""

    def invoke(self, ctx: Any) -> Any:
        check_rules(ctx, self.params)
        for module in _IMPORTED.get(str(self.name), ()):
            import_module(module)
        startup.end()
        return super().invoke(ctx)


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


app.command(cls=_Command)(train)
app.command(cls=_Command)(sample)
app.command("eval", cls=_Command)(evaluate)
app.command(cls=_Command)(plot)
app.command(cls=_Command)(bench)
app.command(cls=_Command)(info)
