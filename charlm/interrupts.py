"""Ctrl-C, and the signals that ask a process to end, at a moment of our choice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

Handler = Callable[[int, FrameType | None], object]

# Ctrl-C; the request to end, of `kill` and of job schedulers; the end of the terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """Another signal than that of Ctrl-C asked this process to end.

    Attributes:
        signum: which.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def exit_code(interruption: BaseException | None) -> int:
    """What a process ends with after a signal: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (interruption.signum if isinstance(interruption, Terminated) else signal.SIGINT)


class Interrupt:
    """Signals, held back.

    Attributes:
        pending: the number of the signal that came; 0 if none did.
    """

    def __init__(self, handlers: Mapping[int, Handler]) -> None:
        self.pending = 0
        self._handlers = handlers
        self._frame: FrameType | None = None

    def hold(self, signum: int, frame: FrameType | None) -> None:
        """The handler of the signals while they are held back."""
        self.pending = max(self.pending, signum)
        self._frame = frame

    def deliver(self, signum: int) -> None:
        """Does now what signal `signum` does, which is to raise KeyboardInterrupt, whether or not it came here."""
        self.pending = 0
        self._handlers.get(signum, signal.default_int_handler)(signum, self._frame)

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Within the block signals are not held back; one that has come is delivered first."""
        if self.pending:
            self.deliver(self.pending)
        _handle(self._handlers)
        try:
            yield
        finally:
            _handle(dict.fromkeys(self._handlers, self.hold))


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Holds Ctrl-C and its like back until they are delivered or the block ends, so that no work is stopped halfway.

    Within another such block the end of that one counts. Python delivers signals to the main thread only; elsewhere,
    and where a signal is not handled in Python, it is not held back.
    """
    handlers: dict[int, Handler] = {
        signum: handler for signum in SIGNALS if callable(handler := signal.getsignal(signum))
    }
    for handler in handlers.values():
        outer = getattr(handler, "__self__", None)
        if isinstance(outer, Interrupt):
            yield outer
            return
    if threading.current_thread() is not threading.main_thread():
        yield Interrupt({})
        return
    interrupt = Interrupt(handlers)
    _handle(dict.fromkeys(handlers, interrupt.hold))
    try:
        yield interrupt
    finally:
        _handle(handlers)
    if interrupt.pending:
        interrupt.deliver(interrupt.pending)


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Within the block a signal that asks the process to end raises `Terminated`, as Ctrl-C raises KeyboardInterrupt.

    One that is ignored, as `nohup` has it, or that somebody else handles, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    defaults: dict[int, Handler | signal.Handlers] = {
        signum: signal.SIG_DFL for signum in SIGNALS if signal.getsignal(signum) is signal.SIG_DFL
    }
    _handle(dict.fromkeys(defaults, _terminate))
    try:
        yield
    finally:
        _handle(defaults)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(signum)


def _handle(handlers: Mapping[int, Handler | signal.Handlers]) -> None:
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
