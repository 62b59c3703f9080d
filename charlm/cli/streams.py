"""Standard output and standard error, also where whoever started the program has closed them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def open_closed() -> None:
    """Gives standard streams that are closed a descriptor that leads nowhere, before a file of a run gets its number.

    Standard error is then written to nowhere; `sys.stdout` stays None, as output that nobody gets is an error.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free, which is this one.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the program runs


def flush_or_discard() -> None:
    """Writes out what standard output has; where that is not possible, to nowhere, and all that follows."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(kind: str, message: str) -> None:
    """Writes a line to standard error, "error: ..." or "warning: ..."."""
    # All processes of `torchrun` write to one terminal.
    rank = os.environ.get("RANK", "0")
    start = f"{kind}:" if rank == "0" else f"{kind} (rank {rank}):"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        start = f"\x1b[1;31m{start}\x1b[0m"
    print(start, message, file=sys.stderr)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Warnings are a line each, without the place in the code that Python shows."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: complain("warning", " ".join(str(message).split()))
        yield
