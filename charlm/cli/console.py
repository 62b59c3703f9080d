"""What commands show: progress on standard error, and tables of losses."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from charlm._version import __version__

if TYPE_CHECKING:
    from charlm.models import LanguageModel

# The shown loss is an average over about this many reports: that of a single small batch jumps.
_LOSS_REPORTS = 10
# Plain lines come every tenth of the run, and at least this often.
_LINE_SECONDS = 60.0

# What can be done with a run that has been trained: commands, and what each does.
NEXT = (
    ("sample", "invent new lines"),
    ("plot", "draw its losses and what it has learned"),
)

# What to do first.
_FIRST = (
    ("train", "learn the given names of the United States"),
    ("sample runs/names", "invent new ones"),
    ("plot runs/names", "draw what has been learned"),
)

# Columns of the terminal: what the numbers beside a bar of progress take, and the bar itself.
_NUMBERS, _SHORTEST_BAR, _LONGEST_BAR = 60, 5, 40

OnProgress = Callable[[int, float], None]


@contextmanager
def progress(start: int, total: int, *, quiet: bool, console: Console | None = None) -> Iterator[OnProgress]:
    """Shows how a run of `total` steps gets on from step `start`: a bar on a terminal, plain lines elsewhere.

    Yields:
        The `on_progress` of `Trainer.run`.
    """
    console = console or Console(stderr=True)
    if quiet:
        yield lambda step, loss: None
    elif not console.is_terminal:
        yield _plain_lines(start, total, console)
    else:
        numbers = (MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"), _Speed(), TimeRemainingColumn())
        room = console.width - _NUMBERS
        drawn = (BarColumn(min(room, _LONGEST_BAR)),) if room >= _SHORTEST_BAR else ()
        with Bar(*drawn, *numbers, TextColumn("left"), console=console) as bar:
            task = bar.add_task("train", total=total, completed=start, loss="-")
            average = _LossAverage()
            yield lambda step, loss: bar.update(task, completed=step, loss=f"{average(loss):.4f}")


def measures(nll: float, unit: str = "character") -> dict[str, float]:
    """A mean negative log-likelihood in nats, and the two other forms that it is quoted in."""
    # exp overflows where a perplexity is infinite for all purposes.
    perplexity = math.exp(nll) if nll < 700.0 else math.inf
    return {"nll": nll, "perplexity": perplexity, f"bits_per_{unit}": nll / math.log(2.0)}


def show(message: str | Text, err: bool = False) -> None:
    """Prints a message, in colours where it goes to a terminal that has them, and nobody has set NO_COLOR."""
    Console(stderr=err, soft_wrap=True, highlight=False, markup=False, emoji=False).print(message)


def loss_table(losses: Mapping[str, float], unit: str = "character") -> str:
    """The losses of some splits as aligned lines."""
    lines = [f"split      nll   perplexity {f'bits/{unit}':>16}"]
    for split, nll in losses.items():
        _, perplexity, bits = measures(nll).values()
        # A model that is sure of what is wrong has one of more digits than there is room for.
        shown = f"{perplexity:.4f}" if perplexity < 1e7 else f"{perplexity:.4e}"
        lines.append(f"{split:5} {nll:8.4f} {shown:>12} {bits:16.4f}")
    return "\n".join(lines)


def losses_shown(losses: Mapping[str, float], unit: str = "character") -> Text:
    """The table of losses, as `show` prints it."""
    table = Text(loss_table(losses, unit))
    table.stylize("bold", 0, table.plain.index("\n"))
    return table


def next_commands(
    run: str, seconds: float | None, saved: str = "saved", more: Sequence[tuple[Sequence[str], str]] = ()
) -> Text:
    """What training ends with: how long it took, where the run is, and what can be done with it.

    Args:
        run: its folder.
        seconds: None where the run was at its end already.
        saved: what is there.
        more: the words of other commands, and what each does.
    """
    done = "nothing left to train" if seconds is None else f"trained in {elapsed(seconds)}"
    following = [*(((name, run), meaning) for name, meaning in NEXT), *more]
    commands = _explained([(shlex.join([*program(), *words]), meaning) for words, meaning in following])
    return Text.assemble(f"{done}, {saved} in ", (run, "bold"), "; next:\n", commands)


def elapsed(seconds: float) -> str:
    """Seconds with one decimal, or minutes and seconds, or hours and minutes."""
    if seconds < 60.0:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def hint_at_smoothing(model: LanguageModel, losses: Mapping[str, float]) -> str | None:
    """What to do where a model that counts has seen nothing of what it is asked for."""
    infinite = [split for split, nll in losses.items() if math.isinf(nll)]
    if not infinite or getattr(model, "smoothing", None) != 0.0:
        return None
    return (
        f"the loss of {' and '.join(infinite)} is infinite: there are pairs of characters that were never counted; "
        "training with --smoothing 1 counts each once more"
    )


def program() -> list[str]:
    """What starts this program in a shell: `charlm`, or where that is not on the path, as it was called."""
    called = Path(sys.argv[0])
    if shutil.which("charlm") is None and called.name == "charlm":
        return [sys.argv[0]]
    if shutil.which("charlm") is None and called.parts[-2:] == ("charlm", "__main__.py"):
        return [sys.executable, "-m", "charlm"]
    return ["charlm"]


def width() -> int:
    """Of the terminal; without one 80 columns."""
    return Console().width


def welcome() -> Text:
    """What `charlm` says alone: what to do first, and where the rest is."""
    charlm = shlex.join(program())
    return Text.assemble(
        (f"charlm {__version__}", "bold"),
        ": character-level language models\n\nStart with\n",
        _explained([(f"{charlm} {command}", meaning) for command, meaning in _FIRST]),
        "\n\nYour own text, with a name, word or sentence a line:\n",
        _explained([(f"{charlm} train words.txt", "")]),
        "\n\nAll commands: ",
        (f"{charlm} --help", "cyan"),
        "; one of them: ",
        (f"{charlm} train --help", "cyan"),
    )


def examples(lines: Sequence[tuple[str, str]]) -> str:
    """Command lines, and what each does, as the end of a command's help."""
    console = Console(highlight=False, soft_wrap=True)
    with console.capture() as capture:
        console.print(Text.assemble("\n", (" Examples", "bold"), "\n", _explained(lines)))
    return capture.get()


def _explained(lines: Sequence[tuple[str, str]]) -> Text:
    """Command lines, and what each does: beside them where the terminal is wide enough for all, or below."""
    longest = max(len(command) for command, _ in lines)
    beside = 2 + longest + 2 + max(len(meaning) for _, meaning in lines) <= width()
    parts = [
        Text.assemble(
            "  ",
            (command, "cyan"),
            (" " * (longest + 2 - len(command)) if beside else "\n      ") if meaning else "",
            (meaning, "dim"),
        )
        for command, meaning in lines
    ]
    return Text("\n").join(parts)


class _LossAverage:
    """An exponential moving average that starts at the first loss."""

    def __init__(self) -> None:
        self._average: float | None = None

    def __call__(self, loss: float) -> float:
        self._average = loss if self._average is None else self._average + (loss - self._average) / _LOSS_REPORTS
        return self._average


class _Speed(ProgressColumn):
    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        return Text("- steps/s" if task.speed is None else f"{task.speed:,.0f} steps/s")


def _plain_lines(start: int, total: int, console: Console) -> OnProgress:
    average = _LossAverage()
    began = last = time.monotonic()
    next_step = start + (total - start) / 10

    def on_progress(step: int, loss: float) -> None:
        nonlocal last, next_step
        shown = average(loss)
        now = time.monotonic()
        if step < next_step and now - last < _LINE_SECONDS:
            return
        last, next_step = now, step + (total - start) / 10
        speed = (step - start) / max(now - began, 1e-9)
        left = round((total - step) / speed)
        line = f"step {step:,}/{total:,}  loss {shown:.4f}  {speed:,.0f} steps/s  {left // 60}:{left % 60:02} left"
        console.print(line, highlight=False, soft_wrap=True)

    return on_progress
