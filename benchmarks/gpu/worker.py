"""A process that does tasks of one step on the GPU, and appends to a file what it begins and what came of it.

    python -m benchmarks.gpu.worker benchmarks.gpu.smoke:tasks --tasks todo.json --events done.jsonl
    python -m benchmarks.gpu.worker --list

benchmarks/gpu/jobs.py starts it, reads the file, and ends the process where a task hangs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks.gpu import measure
from benchmarks.gpu.jobs import BROKEN
from benchmarks.gpu.steps import STEPS, TaskStep
from benchmarks.gpu.task import Task, attempt
from charlm import environment


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="where the tasks are from: module:function")
    parser.add_argument("--tasks", type=Path, help="file with the names of those that are to be done")
    parser.add_argument("--events", type=Path, help="file that is appended to")
    parser.add_argument("--list", action="store_true", help="print the names of all tasks, and versions; do nothing")
    options = parser.parse_args(arguments)
    if options.list:
        print(json.dumps(describe()))
        return
    names = {tuple(name) for name in json.loads(options.tasks.read_text())}
    run(options.source, names, options.events)


def run(source: str, names: set[tuple[str, str]], path: Path) -> None:
    """Does the tasks of these names."""
    with path.open("a") as events:

        def say(**event: Any) -> None:
            print(json.dumps(event), file=events, flush=True)

        for part, task in tasks_of(source):
            if (part, task.name) not in names:
                continue
            say(part=part, name=task.name, facts=dict(task.facts))
            say(part=part, name=task.name, entry=attempt(task))
            if measure.is_broken():
                leave(BROKEN)
            measure.release_memory()


def leave(status: int) -> NoReturn:
    """Ends this process without taking CUDA down in good order, which may hang where something went wrong."""
    sys.stdout.flush()
    os._exit(status)


def tasks_of(source: str) -> Iterator[tuple[str, Task]]:
    """Pairs of a part and a task."""
    module, _, function = source.partition(":")
    tasks: Iterator[tuple[str, Task]] = getattr(import_module(module), function)()
    return tasks


def describe() -> dict[str, Any]:
    """What the process that never touches the GPU asks another one, as it would take importing torch."""
    return {
        "versions": environment.versions(),
        "cuda": torch.version.cuda,
        "tasks": {
            step.name: [(part, task.name) for part, task in tasks_of(step.source)]
            for step in STEPS
            if isinstance(step, TaskStep)
        },
    }


if __name__ == "__main__":
    main()
    leave(0)
