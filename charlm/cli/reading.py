"""How far reading a large text has come, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from charlm.token_arrays import OnRead

# What takes no longer is not worth a word; plain lines come this often.
_QUICK_SECONDS = 0.5
_LINE_SECONDS = 10.0


@contextmanager
def reading(*, quiet: bool, console: Console | None = None) -> Iterator[OnRead]:
    """Shows how reading gets on: a bar on a terminal, which is gone at the end, and plain lines elsewhere.

    Yields:
        The `on_read` of `charlm.data.load`.
    """
    console = console or Console(stderr=True)
    if quiet:
        yield lambda done, total: None
    elif not console.is_terminal:
        yield _plain_lines(console)
    else:
        columns = (TextColumn("read"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("read", total=None, visible=False)
            started = time.monotonic()

            def on_read(done: int, total: int) -> None:
                slow = time.monotonic() - started > _QUICK_SECONDS
                bar.update(task, completed=done, total=total, visible=slow)

            yield on_read


def _plain_lines(console: Console) -> OnRead:
    last = time.monotonic()

    def on_read(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_SECONDS:
            last = now
            console.print(f"read {done / total:.0%} of the text", highlight=False, soft_wrap=True)

    return on_read
