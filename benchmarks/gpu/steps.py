"""The steps of a run, in their order: each in processes of its own, with a time after which these are killed.

What tells most comes first, and what may take long or hang last; the table says what each is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu import commands, profile
from benchmarks.gpu.jobs import CommandJob, Name, Record, WorkerJob
from benchmarks.gpu.processes import Command, Job
from benchmarks.gpu.results import Entry


@dataclass(frozen=True)
class TaskStep:
    """Tasks that one process does after another, and a fresh one goes on where a process hung or crashed.

    Attributes:
        name: on the command line.
        seconds: that it may take.
        source: a function that yields pairs of a part of the results and a task, as "module:function".
        task_seconds: that a task may take.
        is_alone: each task has a process of its own.
        at_once: so many processes run side by side.
    """

    name: str
    seconds: float
    source: str
    task_seconds: float
    is_alone: bool = False
    at_once: int = 1

    def jobs(self, names: Sequence[Name], record: Record) -> list[Job]:
        groups = [[name] for name in names] if self.is_alone else [list(names)]
        return [WorkerJob(self.name, self.source, group, record, self.task_seconds) for group in groups if group]


@dataclass(frozen=True)
class CommandStep:
    """Commands, each of which is recorded.

    Attributes:
        name: on the command line, and the part of the results.
        seconds: that it may take.
        commands: by the names of their entries.
        read: what else their entries say, from a name, the exit status and what was printed.
        task_seconds: that a command may take.
        at_once: so many run side by side.
    """

    name: str
    seconds: float
    commands: Callable[[], Mapping[str, Command]]
    read: Callable[[str, int, str], Entry]
    task_seconds: float
    at_once: int = 1

    def names(self) -> list[Name]:
        return [(self.name, name) for name in self.commands()]

    def jobs(self, names: Iterable[Name], record: Record) -> list[Job]:
        table = self.commands()

        def job(name: str) -> Job:
            def read(status: int, text: str) -> Entry:
                return self.read(name, status, text)

            return CommandJob((self.name, name), table[name], record, self.task_seconds, read)

        return [job(name) for _, name in names]


Step = TaskStep | CommandStep

_MEASUREMENTS = "benchmarks.gpu.measurements"
STEPS: tuple[Step, ...] = (
    # Versions, clocks, limits; that one op runs.
    CommandStep("machine", 15, commands.machine, commands.read_machine, 15, at_once=3),
    # That every op computes what it should, in every dtype.
    TaskStep("smoke", 30, "benchmarks.gpu.smoke:tasks", 10),
    # What may ruin a device.
    TaskStep("risky", 30, "benchmarks.gpu.risky:tasks", 25, is_alone=True, at_once=16),
    # What this GPU can do at best.
    TaskStep("ceilings", 10, "benchmarks.gpu.ceilings:tasks", 10),
    # Training steps by charlm and PyTorch, each as they are and in a graph; populations; the time to a loss.
    TaskStep("training", 60, "benchmarks.gpu.training:step", 30),
    # All ops by charlm and eager PyTorch.
    TaskStep("charlm", 70, f"{_MEASUREMENTS}:ours_and_eager", 20),
    # What six kernels wait for.
    CommandStep("ncu", 55, profile.commands, profile.read, 25),
    CommandStep("tests", 130, commands.tests, commands.read_tests, 130),
    CommandStep("sanitizer", 85, commands.sanitizers, commands.read_sanitizer, 85, at_once=4),
    # Liger, CCE, and quack where it is installed.
    TaskStep("peers", 45, f"{_MEASUREMENTS}:peers", 20),
    # torch.compile, in what is left.
    TaskStep("compile", math.inf, f"{_MEASUREMENTS}:compiled", 40),
)
