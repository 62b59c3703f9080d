"""Processes that are given a time: whatever hangs, crashes or aborts in one of them ends there."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]

_POLL_SECONDS = 0.05
# For saying where it was when it was told to end, and for the kernel to end what is told to.
_WORD_SECONDS = 2.0
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Command:
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Process:
    """A command that runs in a process group of its own, and whose output goes to a file.

    Args:
        command: run in the folder of the sources, which Python finds modules in.
        log: the file, which is written anew.
    """

    def __init__(self, command: Command, log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.started = time.monotonic()
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command.arguments,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, **command.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def exit_status(self) -> int | None:
        """None as long as it runs; negative where a signal ended it."""
        return self._process.poll()

    def kill(self, *, ask: bool = False) -> None:
        """Ends it and what it started; asked, a Python that has its fault handler on writes first where it was.

        Returns also where the kernel cannot end it, as a driver may wait for what never comes.
        """
        if ask and self._process.poll() is None:
            self._process.send_signal(signal.SIGABRT)
            self._wait(_WORD_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._wait(_END_SECONDS)

    def _wait(self, seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def last_lines(self, count: int) -> list[str]:
        return self.text().strip().splitlines()[-count:]

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def complete(command: Command, seconds: float) -> tuple[int | None, str]:
    """The exit status, None where it had to be ended, and what was printed."""
    with tempfile.TemporaryDirectory() as folder:
        process = Process(command, Path(folder) / "log")
        try:
            while process.exit_status() is None and time.monotonic() < process.started + seconds:
                time.sleep(_POLL_SECONDS)
            status = process.exit_status()
        finally:
            process.kill()
        return status, process.text()


class Job(Protocol):
    """Something that runs in a process and records what came of it."""

    def start(self) -> None:
        """Starts the process."""

    def poll(self) -> bool:
        """Whether it has ended, by itself or because its own time was over; then it is recorded."""

    def rest(self) -> Job | None:
        """Of what has ended: what is left to do in another process."""

    def stop(self) -> None:
        """Ends it, as there is no more time for it, and records that."""

    def drop(self) -> None:
        """Ends it without a record, as the whole run ends."""


def run(jobs: Iterable[Job], deadline: float, *, at_once: int = 1) -> list[Job]:
    """Runs so many jobs at a time, until a time of the monotonic clock; returns those that were not begun."""
    waiting: deque[Job] = deque(jobs)
    running: list[Job] = []
    try:
        while waiting or running:
            if time.monotonic() >= deadline:
                while running:
                    running.pop().stop()
                break
            while waiting and len(running) < at_once:
                running.append(waiting.popleft())
                running[-1].start()
            for job in [job for job in running if job.poll()]:
                running.remove(job)
                waiting.extendleft(filter(None, [job.rest()]))
            if running:
                time.sleep(_POLL_SECONDS)
    finally:
        for job in running:
            job.drop()
    return list(waiting)
