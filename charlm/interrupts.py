"""Ctrl-C at a moment of our choice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Holds Ctrl-C back until the yielded function is called or the block ends, so that no work is stopped halfway.

    Python delivers signals to the main thread only; elsewhere, and where Ctrl-C is not handled in Python, this does
    nothing.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield lambda: None
        return
    pending: list[tuple[int, FrameType | None]] = []

    def raise_if_interrupted() -> None:
        if pending:
            handler(*pending.pop())

    signal.signal(signal.SIGINT, lambda signum, frame: pending.append((signum, frame)))
    try:
        yield raise_if_interrupted
    finally:
        signal.signal(signal.SIGINT, handler)
    raise_if_interrupted()
