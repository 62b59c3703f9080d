"""Ctrl-C at a moment of our choice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


class Interrupt:
    """Ctrl-C, held back.

    Attributes:
        pending: whether it has been pressed.
    """

    def __init__(self, handler: Handler) -> None:
        self.pending = False
        self._handler = handler
        self._frame: FrameType | None = None

    def hold(self, signum: int, frame: FrameType | None) -> None:
        """The handler of the signal while it is held back."""
        self.pending = True
        self._frame = frame

    def deliver(self) -> None:
        """Does now what Ctrl-C does, which is to raise KeyboardInterrupt, whether or not it has been pressed."""
        self.pending = False
        self._handler(signal.SIGINT, self._frame)


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Holds Ctrl-C back until it is delivered or the block ends, so that no work is stopped halfway.

    Within another such block the end of that one counts. Python delivers signals to the main thread only; elsewhere,
    and where Ctrl-C is not handled in Python, nothing is held back.
    """
    handler = signal.getsignal(signal.SIGINT)
    outer = getattr(handler, "__self__", None)
    if isinstance(outer, Interrupt):
        yield outer
        return
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield Interrupt(signal.default_int_handler)
        return
    interrupt = Interrupt(handler)
    signal.signal(signal.SIGINT, interrupt.hold)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupt.pending:
        interrupt.deliver()
