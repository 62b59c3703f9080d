"""The results of one GPU: a file that is written after every task, so that a run can go on where it was cut short."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

_UNFINISHED = "the run ended while this ran"

# charlm's own: of an op, and of training, the one that a trainer takes by itself first.
OURS = ("charlm", "fused", "graph", "ops")
# Of our results from eager's, beyond which something is wrong: bfloat16 rounds to 0.004.
MOST_DIFFERENCE = 0.02


class Results:
    """Entries by part and task, in a JSON file.

    Args:
        path: of the file; what it holds is kept if it is of the same `facts["commit"]`.
        facts: on what is measured, and when.
        retry: entries that say of an error are forgotten. Those that were "cut", as time was over, always are.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], *, retry: bool = False) -> None:
        self._path = path
        before = json.loads(path.read_text()) if path.exists() else {}
        self.goes_on = bool(before) and before["commit"] == facts["commit"]
        parts = before["parts"] if self.goes_on else {}
        parts = {
            part: {
                name: entry for name, entry in entries.items() if not ("cut" in entry or (retry and is_failure(entry)))
            }
            for part, entries in parts.items()
        }
        self.data: dict[str, Any] = {**facts, "parts": parts}

    def has(self, part: str, name: str) -> bool:
        return name in self.data["parts"].get(part, {})

    def begin(self, part: str, name: str, facts: Mapping[str, Any]) -> None:
        """Should this process be killed as well, the task counts as failed and is not what the next run dies of."""
        self.put(part, name, {**facts, "error": _UNFINISHED})

    def put(self, part: str, name: str, entry: Entry) -> None:
        self.data["parts"].setdefault(part, {})[name] = entry
        self.save()

    def forget(self, part: str, name: str) -> None:
        del self.data["parts"][part][name]
        self.save()

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(temporary, self._path)


def is_failure(entry: Mapping[str, Any]) -> bool:
    """Whether a task did not do what it should: it raised, or a command of it failed."""
    return "error" in entry or any(run["exit_status"] != 0 for run in entry.get("commands", {}).values())


def is_wrong(entry: Mapping[str, Any]) -> bool:
    """Whether what was measured differs from eager's results by more than rounding does."""
    return bool(entry.get("difference", 0.0) > MOST_DIFFERENCE)


def failures(results: Mapping[str, Any]) -> list[str]:
    """The tasks of ours that failed: what an opponent cannot do is recorded, and no failure."""
    return [
        f"{part}: {name}"
        for part, entries in results["parts"].items()
        for name, entry in entries.items()
        if entry.get("implementation", OURS[0]) in OURS and (is_failure(entry) or is_wrong(entry))
    ]
