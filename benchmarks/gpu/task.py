"""What is done once on a GPU and recorded under a name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.results import Entry


@dataclass(frozen=True)
class Task:
    """What is done once and recorded under its name.

    Attributes:
        name: within its part of the results.
        run: what it returns is recorded, or why it raised.
        facts: that are recorded in either case.
    """

    name: str
    run: Callable[[], Entry]
    facts: Mapping[str, Any] = field(default_factory=dict)


def attempt(task: Task) -> Entry:
    """The entry of a task; of one that fails the first line of why, as it must not end the run."""
    started = time.monotonic()
    try:
        measured = task.run()
    except ImportError as error:
        measured = {"error": f"not installed: {error}"}
    except Exception as error:
        measured = {"error": in_a_line(error)}
    return {**task.facts, **measured, "took_s": round(time.monotonic() - started, 1)}


def in_a_line(error: Exception) -> str:
    """Its type, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
