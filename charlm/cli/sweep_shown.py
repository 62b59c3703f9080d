"""What `charlm sweep` shows: how far all models are, on standard error, and the table of settings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from charlm.cli import console
from charlm.cli.options import flag
from charlm.search_space import value_shown

if TYPE_CHECKING:
    from charlm.sweep import SettingResult, SweepConfig, SweepProgress
    from charlm.sweep.training import OnSweepProgress

# Columns of the terminal that the numbers beside the bar take, and the bar itself.
_NUMBERS, _SHORTEST_BAR, _LONGEST_BAR = 62, 5, 40
# Plain lines come every tenth of the work, and at least this often.
_LINE_SECONDS = 60.0


@contextmanager
def sweep_progress(models: int, *, quiet: bool, to: Console | None = None) -> Iterator[OnSweepProgress | None]:
    """Shows how a sweep gets on: a bar on a terminal, plain lines elsewhere.

    Args:
        models: how many there are.
        quiet: whether to show nothing.
        to: where; None is standard error.

    Yields:
        The `on_progress` of `Sweep.run`.
    """
    to = to or Console(stderr=True)
    if quiet:
        yield None
    elif not to.is_terminal:
        yield _plain_lines(models, to)
    else:
        room = to.width - _NUMBERS
        drawn = (BarColumn(min(room, _LONGEST_BAR)),) if room >= _SHORTEST_BAR else ()
        with Bar(
            *drawn, TextColumn("{task.description}"), TimeRemainingColumn(), TextColumn("left"), console=to
        ) as bar:
            task = bar.add_task("", total=None)

            def on_progress(at: SweepProgress) -> None:
                bar.update(task, description=_state(at, models), total=at.to_train, completed=at.trained)

            yield on_progress


def sweep_table(settings: Sequence[SettingResult], config: SweepConfig, top: int, room: int | None) -> Text:
    """The settings as aligned lines, the best first, with as many columns as there is room for.

    Args:
        settings: sorted.
        config: of the sweep.
        top: how many to show; 0 is all.
        room: columns of the terminal; None is any number of them.
    """
    shown = settings[:top] if top else settings
    several = config.seeds > 1
    columns: list[tuple[str, list[str]]] = [
        (flag(name).removeprefix("--"), [value_shown(setting.options[name]) for setting in shown])
        for name in config.options
    ]
    columns.append(("dev", [_loss(setting.dev) for setting in shown]))
    if several:
        columns.append(("±", [_loss(setting.spread) for setting in shown]))
        columns.append(("best", [_loss(setting.results[0].dev) for setting in shown]))
        columns.append(("seed", [str(setting.results[0].seed) for setting in shown]))
    columns.append(("train", [_loss(setting.loss) for setting in shown]))
    columns.append(("models" if several else "model", [_statuses(setting) for setting in shown]))
    # What was tried, and what came of it, are the last to go.
    while room is not None and columns[-1][0] != "dev" and len(_lines(columns)[0]) > room:
        columns.pop()
    lines = _lines(columns)
    if len(shown) < len(settings):
        lines.append(f"and {len(settings) - len(shown):,} more settings: --top 0 shows all")
    table = Text("\n".join(lines))
    table.stylize("bold", 0, len(lines[0]))
    return table


def _lines(columns: Sequence[tuple[str, list[str]]]) -> list[str]:
    cells = [[heading, *values] for heading, values in columns]
    widths = [max(map(len, column)) for column in cells]
    rows = zip(*cells, strict=True)
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}" if abs(loss) < 1e6 else f"{loss:.4e}"


def _statuses(setting: SettingResult) -> str:
    """How many of the models of a setting came how far; of a single one, how far it came."""
    found: dict[str, int] = {}
    for result in setting.results:
        at = "" if result.status == "done" else f" at {result.step:,}"
        found[f"{result.status}{at}"] = found.get(f"{result.status}{at}", 0) + 1
    if len(setting.results) == 1:
        return next(iter(found))
    return ", ".join(f"{count} {status}" for status, count in found.items())


def _state(at: SweepProgress, models: int) -> str:
    best = "-" if at.best is None else f"{at.best:.4f}"
    diverged = f"  {at.diverged} of {models} diverged" if at.diverged else ""
    return f"step {at.step:,}/{at.steps:,}  best dev {best}{diverged}"


def _plain_lines(models: int, to: Console) -> OnSweepProgress:
    began = last = time.monotonic()
    first: int | None = None
    following = 0.0

    def on_progress(at: SweepProgress) -> None:
        nonlocal last, first, following
        first = at.trained if first is None else first
        now = time.monotonic()
        if at.trained < following and now - last < _LINE_SECONDS:
            return
        last, following = now, at.trained + (at.to_train - first) / 10
        speed = (at.trained - first) / max(now - began, 1e-9)
        left = "" if speed == 0 else f"  {console.elapsed((at.to_train - at.trained) / speed)} left"
        to.print(f"{_state(at, models)}{left}", highlight=False, soft_wrap=True)

    return on_progress
