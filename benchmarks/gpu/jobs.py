"""What a step does in processes of its own: a command, or tasks one after the other."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.processes import Command, Process
from benchmarks.gpu.results import Entry, Results

Name = tuple[str, str]  # the part of the results, and the task in it

# Of a worker whose device can be used no more, and which leaves the other tasks to another.
BROKEN = 3
_TIMED_OUT = 124
_KEPT_LINES = 60
# A process that did not get to a task says of itself so.
START = "start"


@dataclass
class Record:
    """Where jobs record what came of them, and keep what was printed.

    Attributes:
        results: the file of entries.
        logs: a folder.
        say: is told what ended, and how.
        cut: tasks that had less than their time, as that of their step was over; they are done once more.
    """

    results: Results
    logs: Path
    say: Callable[[str], None]
    cut: set[Name] = field(default_factory=set)
    _done_again: set[Name] = field(default_factory=set)

    def once_more(self, names: Collection[Name]) -> None:
        """They are about to be done; where they are cut off again, that is what they are recorded with."""
        self._done_again |= self.cut.intersection(names)
        self.cut.difference_update(names)

    def put_cut(self, name: Name, entry: Entry) -> None:
        """What had less than its time; a later run does it as well."""
        if name not in self._done_again:
            self.cut.add(name)
            entry = {**entry, "cut": True}
        self.put(name, entry)

    def put(self, name: Name, entry: Entry) -> None:
        self.results.put(*name, entry)
        what = entry.get("error") or entry.get("skipped") or _commands_failed(entry) or "done"
        self.say(f"{': '.join(name)}: {what}")

    def log_path(self, name: str) -> Path:
        """A file that there is not yet."""
        word = "".join(letter if letter.isalnum() else "-" for letter in name)
        number = 1 + len(list(self.logs.glob(f"{word}.*.log")))
        return self.logs / f"{word}.{number}.log"


class CommandJob:
    """A command, whose exit status and output are recorded.

    Args:
        name: under which it is recorded.
        command: what is run.
        seconds: that it may take.
        read: what else the entry says, from the exit status and what was printed; its "skipped" takes the place of all.
    """

    def __init__(
        self,
        name: Name,
        command: Command,
        record: Record,
        seconds: float,
        read: Callable[[int, str], Entry] = lambda status, text: {},
    ) -> None:
        self._name, self._command, self._record, self._seconds, self._read = name, command, record, seconds, read
        self._process: Process | None = None

    def start(self) -> None:
        program = self._command.arguments[0]
        if shutil.which(program) is None:
            self._record.put(self._name, {"skipped": f"{program} is not installed"})
        else:
            self._record.results.begin(*self._name, {})
            self._process = Process(self._command, self._record.log_path(self._name[1]))

    def poll(self) -> bool:
        if self._process is None:
            return True
        status = self._process.exit_status()
        is_late = time.monotonic() > self._process.started + self._seconds
        if status is None and not is_late:
            return False
        self._end(self._process, status)
        return True

    def rest(self) -> None:
        return None

    def stop(self) -> None:
        if self._process is not None:
            self._end(self._process, self._process.exit_status())

    def drop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._record.results.forget(*self._name)

    def _end(self, process: Process, status: int | None) -> None:
        took = round(time.monotonic() - process.started, 1)
        process.kill()
        run: dict[str, Any] = {"command": shlex.join(self._command.arguments)}
        run["exit_status"] = _TIMED_OUT if status is None else status
        if status is None:
            run["note"] = f"ran out of time after {took} s"
        run["last_lines"] = process.last_lines(3 if status == 0 else _KEPT_LINES)
        read = self._read(run["exit_status"], process.text())
        run.update(read.pop("run", {}))
        entry = read if "skipped" in read else {"commands": {self._name[1]: run}, **read}
        self._record.put(self._name, {**entry, "took_s": took})


class WorkerJob:
    """Tasks, one after the other in a process of benchmarks/gpu/worker.py, which writes what it does to a file.

    Args:
        step: the name of the step.
        source: where the tasks are from, as in `steps.py`.
        names: of the tasks that are to be done.
        task_seconds: that one of them may take.
    """

    def __init__(self, step: str, source: str, names: Sequence[Name], record: Record, task_seconds: float) -> None:
        self._step, self._source, self._record, self._task_seconds = step, source, record, task_seconds
        self._left = list(names)
        self._began: tuple[Name, float] | None = None
        self._has_begun = False

    def start(self) -> None:
        log = self._record.log_path(self._step)
        self._events = log.with_suffix(".events")
        self._events.touch()
        self._read_to = 0
        todo = log.with_suffix(".todo")
        todo.write_text(json.dumps(self._left))
        self._process = Process(worker_command(self._source, "--tasks", str(todo), "--events", str(self._events)), log)

    def poll(self) -> bool:
        status = self._process.exit_status()  # before its last events are read
        self._read_events()
        if status is None and self._began is not None and time.monotonic() > self._began[1] + self._task_seconds:
            self._process.kill(ask=True)
            self._fail(f"did not end within {self._task_seconds:g} s")
            return True
        if status is None:
            return False
        self._process.kill()
        if self._began is not None:
            self._fail(f"the process ended: {_ending(status)}")
        elif not self._has_begun and self._left:
            # Another process would end like this one.
            part = self._left[0][0]
            self._record.put((part, f"{self._step}: {START}"), self._entry({}, f"no task began: {_ending(status)}"))
            self._left.clear()
        return True

    def rest(self) -> WorkerJob | None:
        if not self._left:
            return None
        return WorkerJob(self._step, self._source, self._left, self._record, self._task_seconds)

    def stop(self) -> None:
        self._read_events()
        self._process.kill(ask=True)
        if self._began is not None:
            seconds = time.monotonic() - self._began[1]
            error = f"did not end within the {seconds:.1f} s that were left to its step"
            self._record.put_cut(self._began[0], self._entry(self._facts, error))

    def drop(self) -> None:
        self._read_events()
        self._process.kill()
        if self._began is not None:
            self._record.results.forget(*self._began[0])

    def _read_events(self) -> None:
        content = self._events.read_bytes()
        complete = content[self._read_to : content.rfind(b"\n") + 1]
        self._read_to += len(complete)
        for line in complete.splitlines():
            event = json.loads(line)
            name = (event["part"], event["name"])
            if "entry" in event:
                self._record.put(name, event["entry"])
                self._began = None
            else:
                self._facts: Mapping[str, Any] = event["facts"]
                self._record.results.begin(*name, self._facts)
                self._began, self._has_begun = (name, time.monotonic()), True
                self._left.remove(name)

    def _fail(self, error: str) -> None:
        assert self._began is not None
        self._record.put(self._began[0], self._entry(self._facts, error))
        self._began = None

    def _entry(self, facts: Mapping[str, Any], error: str) -> Entry:
        return {**facts, "error": error, "last_lines": self._process.last_lines(_KEPT_LINES)}


def worker_command(*arguments: str) -> Command:
    """A process that writes where it was when it is ended by a signal."""
    return Command([sys.executable, "-u", "-X", "faulthandler", "-m", "benchmarks.gpu.worker", *arguments])


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _commands_failed(entry: Entry) -> str | None:
    notes = [
        run.get("note", f"exit status {run['exit_status']}")
        for run in entry.get("commands", {}).values()
        if run["exit_status"] != 0
    ]
    return "; ".join(notes) or None
