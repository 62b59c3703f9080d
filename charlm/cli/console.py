"""What commands show: progress on standard error, and tables of losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

if TYPE_CHECKING:
    from charlm.models import LanguageModel

# The shown loss is an average over about this many reports: that of a single small batch jumps.
_LOSS_REPORTS = 10
# Plain lines come every tenth of the run, and at least this often.
_LINE_SECONDS = 60.0

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
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"), _Speed())
        with Bar(*columns, TimeRemainingColumn(), TextColumn("left"), console=console) as bar:
            task = bar.add_task("train", total=total, completed=start, loss="-")
            average = _LossAverage()
            yield lambda step, loss: bar.update(task, completed=step, loss=f"{average(loss):.4f}")


def measures(nll: float) -> dict[str, float]:
    """A mean negative log-likelihood in nats, and the two other forms that it is quoted in."""
    # exp overflows where a perplexity is infinite for all purposes.
    perplexity = math.exp(nll) if nll < 700.0 else math.inf
    return {"nll": nll, "perplexity": perplexity, "bits_per_character": nll / math.log(2.0)}


def loss_table(losses: Mapping[str, float]) -> str:
    """The losses of some splits as aligned lines."""
    lines = ["split      nll   perplexity   bits/character"]
    for split, nll in losses.items():
        _, perplexity, bits = measures(nll).values()
        lines.append(f"{split:5} {nll:8.4f} {perplexity:12.4f} {bits:16.4f}")
    return "\n".join(lines)


def hint_at_smoothing(model: LanguageModel, losses: Mapping[str, float]) -> str | None:
    """What to do where a model that counts has seen nothing of what it is asked for."""
    infinite = [split for split, nll in losses.items() if math.isinf(nll)]
    if not infinite or getattr(model, "smoothing", None) != 0.0:
        return None
    return (
        f"the loss of {' and '.join(infinite)} is infinite: there are pairs of characters that were never counted; "
        "training with --smoothing 1 counts each once more"
    )


def examples(lines: Sequence[tuple[str, str]]) -> str:
    """Command lines, and what each does, as the end of a command's help."""
    console = Console(highlight=False)
    width = max(len(command) for command, _ in lines)
    beside = 2 + width + 2 + max(len(meaning) for _, meaning in lines) <= console.width
    with console.capture() as capture:
        console.print(Text(" Examples", style="bold"))
        for command, meaning in lines:
            gap = " " * (width + 2 - len(command)) if beside else "\n      "
            console.print(Text.assemble("  ", (command, "cyan"), gap, (meaning, "dim")), soft_wrap=True)
    return capture.get()


class _LossAverage:
    """An exponential moving average that starts at the first loss."""

    def __init__(self) -> None:
        self._average: float | None = None

    def __call__(self, loss: float) -> float:
        self._average = loss if self._average is None else self._average + (loss - self._average) / _LOSS_REPORTS
        return self._average


class _Speed(ProgressColumn):
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
