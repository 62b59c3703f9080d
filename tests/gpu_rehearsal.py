"""Tasks for what runs on a GPU, that need none: they hang, abort, or lose the device they do not have."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from benchmarks.gpu import measure
from benchmarks.gpu.results import Entry
from benchmarks.gpu.task import Task

measure.DEVICE = "cpu"


def _hang() -> Entry:
    time.sleep(600)
    return {}


def _lose_the_device() -> Entry:
    measure.is_broken = lambda: True
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _tasks(part: str, runs: dict[str, Callable[[], Entry]]) -> Iterator[tuple[str, Task]]:
    for name, run in runs.items():
        yield part, Task(name, run, {"implementation": "charlm"})


def _fine() -> Entry:
    return {"process": os.getpid()}


def all_kinds() -> Iterator[tuple[str, Task]]:
    return _tasks(
        "rehearsal",
        {"one": _fine, "hangs": _hang, "two": _fine, "aborts": os.abort, "three": _fine, "loses": _lose_the_device}
        | {"four": _fine},
    )


def fine() -> Iterator[tuple[str, Task]]:
    return _tasks("ceilings", {"copy": lambda: {"bytes_per_s": 1e9}, "write": lambda: {"bytes_per_s": 2e9}})


def alone() -> Iterator[tuple[str, Task]]:
    return _tasks("risky", {"a": _fine, "aborts": os.abort, "b": _fine})


def broken() -> Iterator[tuple[str, Task]]:
    raise ImportError("nothing of this can be imported")
