"""Ctrl-C while a command starts, which takes seconds where torch is imported for the first time.

Python raises KeyboardInterrupt wherever it is, and while modules are imported that is in code that may take it for one
of its own errors and go on. There is nothing yet to be saved or put in order, so that the program ends on the spot.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


def begin() -> None:
    """From here on Ctrl-C ends the program at once, with a line; not where somebody else handles it."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def end() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(signum: int, frame: FrameType | None) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + signum)
