"""The commands, and the program that they are parts of.

Commands import torch and the rest of charlm when they run, so that `--help` and usage errors do not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from charlm._version import __version__
from charlm.cli import console, startup
from charlm.cli.bench import bench
from charlm.cli.encode import encode
from charlm.cli.evaluate import evaluate
from charlm.cli.export import export
from charlm.cli.info import info
from charlm.cli.options import check_rules
from charlm.cli.plot import plot
from charlm.cli.sample import sample
from charlm.cli.score import score
from charlm.cli.sweep import sweep
from charlm.cli.train import train
from charlm.interrupts import exit_code

# typer gives no name to the class of all its usage errors; BadParameter derives from it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


@dataclass(frozen=True)
class Entry:
    """A command, and what its function does not say.

    Attributes:
        function: whose docstring is the help, and whose parameters are the options.
        panel: the group of commands in which `charlm --help` shows it.
        examples: command lines, and what each does: its help ends with them. In order, they work.
        imported: modules that it imports before it does anything. An optimizer of torch imports its compiler.
    """

    function: Callable[..., None]
    panel: str
    examples: tuple[tuple[str, str], ...]
    imported: tuple[str, ...] = ()


# The narrowest terminal on which help is in boxes.
_BOXES = 80

_TRAIN, _USE, _MACHINE = "Train and measure", "Use a run", "This machine"

# In the order of the help.
COMMANDS = {
    "train": Entry(
        train,
        _TRAIN,
        (
            ("charlm train", "the given names of the United States"),
            ("charlm train words.txt --preset best", "your own: a name, word or sentence a line"),
            ("charlm train --resume runs/names --steps 400", "go on, here beyond the planned end"),
        ),
        ("charlm.training_run", "torch._dynamo"),
    ),
    "sweep": Entry(
        sweep,
        _TRAIN,
        (
            ("charlm sweep --learning-rate 0.02,0.05,0.1 --seeds 3", "each rate with three seeds"),
            ("charlm sweep words.txt --trials 8 --weight-decay log:.01:1", "eight draws from a range"),
            ("charlm sweep --resume runs/names-sweep", "go on, or show the table again"),
        ),
        ("charlm.sweep", "torch._dynamo"),
    ),
    "encode": Entry(
        encode,
        _TRAIN,
        (
            ("charlm encode words.txt", "words.tokens: training on it starts at once"),
            ("charlm encode words.txt --mode stream --out all.tokens", "as one stream of characters"),
        ),
        ("charlm.data",),
    ),
    "eval": Entry(
        evaluate,
        _TRAIN,
        (
            ("charlm eval runs/names", "its own train, dev and test data"),
            ("charlm eval runs/names other.txt --split all", "how well it predicts another text"),
            ("charlm eval runs/names --json", "for a program"),
        ),
        ("charlm.checkpoint", "charlm.evaluation"),
    ),
    "sample": Entry(
        sample,
        _USE,
        (
            ("charlm sample runs/names", "ten new names"),
            ("charlm sample runs/names -n 1000 --seed 1 > new.txt", "the same thousand each time"),
            ("charlm sample runs/names --novel --prefix mar --suffix a", "new ones, from mar to a"),
        ),
        ("charlm.checkpoint", "charlm.sampler"),
    ),
    "score": Entry(
        score,
        _USE,
        (
            ("charlm score runs/names emma olivia", "how surprising each character is"),
            ("charlm score runs/names words.txt --top 5", "the most and the least likely lines"),
        ),
        ("charlm.checkpoint", "charlm.scoring"),
    ),
    "plot": Entry(
        plot,
        _USE,
        (
            ("charlm plot runs/names", "pictures into the run's folder"),
            ("charlm plot runs/names --after mar --after ann", "what it expects after a beginning"),
            ("charlm plot runs/names --only loss --out loss.svg", "one of them, as a vector graphic"),
        ),
        ("charlm.checkpoint", "charlm.plots"),
    ),
    "export": Entry(
        export,
        _USE,
        (
            ("charlm export runs/names --to c --out names.c", "a program: cc -O2 names.c -lm -o names"),
            ("charlm export runs/names --to html --out names.html", "a page for a browser"),
            ("charlm export runs/names --to onnx", "a graph, into the run's folder"),
        ),
        ("charlm.checkpoint", "charlm.export"),
    ),
    "bench": Entry(
        bench,
        _MACHINE,
        (
            ("charlm bench", "the lecture's training step by every backend"),
            ("charlm bench --preset full --backends eager,fused", "two of them, on all examples at once"),
            ("charlm bench --json --seconds 20", "longer, for a program"),
        ),
        ("charlm.benchmark", "torch._dynamo"),
    ),
    "info": Entry(
        info,
        _MACHINE,
        (("charlm info", "versions, instruction sets, devices"), ("charlm info --json", "for a program")),
    ),
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
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            # typer would end the program without a word.
            raise Interrupted(exit_code(interruption)) from None


class _Command(TyperCommand):
    """A command each of whose options is held to the rule for its name, before what takes time is imported.

    Its help ends with examples.
    """

    def invoke(self, ctx: Any) -> Any:
        check_rules(ctx, self.params)
        for module in COMMANDS[str(self.name)].imported:
            import_module(module)
        startup.end()
        return super().invoke(ctx)

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if console.width() < _BOXES:
            # Beside three columns of options and their values, too little is left for what they mean.
            plain = ctx.make_formatter()
            self.format_usage(ctx, plain)
            self.format_help_text(ctx, plain)
            self.format_options(ctx, plain)
            formatter.write(plain.getvalue().replace("\\[", "["))
        else:
            super().format_help(ctx, formatter)
        formatter.write(console.examples(COMMANDS[str(self.name)].examples))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """In plain text, but in the same groups as in boxes."""
        groups: dict[str, list[Any]] = {}
        for parameter in self.get_params(ctx):
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _without_types(parameters: list[Any]) -> list[Any]:
    """Options with nothing beside them where they take nothing: typer shows the type of what they are in Python."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"charlm {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Program,
    invoke_without_command=True,
    help="Train character-level language models, sample from them, and measure them.",
    epilog="Errors are one line; CHARLM_DEBUG=1 shows where they come from.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show it.")] = False,
) -> None:
    """Options that belong to no command; and what to do first, where there is none."""
    if context.invoked_subcommand is None:
        console.show(console.welcome())


for _name, _entry in COMMANDS.items():
    app.command(_name, cls=_Command, rich_help_panel=_entry.panel)(_entry.function)
