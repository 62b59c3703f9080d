"""What a shell completes: folders of runs, and words that an option takes. Without torch, as somebody is typing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import islice

# The file that makes a folder a run, and that which makes it a sweep.
_CONFIG, _SWEEP = "config.json", "sweep.json"
# Of a folder: a home on a network can have many, and nobody reads more.
_MOST_ENTRIES = 1000


def runs(incomplete: str) -> list[str]:
    """The runs whose paths begin so: those in a folder that is there, and those one folder below."""
    return _folders_with(_CONFIG, incomplete)


def sweeps(incomplete: str) -> list[str]:
    """The sweeps whose paths begin so, in the same places."""
    return _folders_with(_SWEEP, incomplete)


def _folders_with(file: str, incomplete: str) -> list[str]:
    folder, start = os.path.split(incomplete)
    found: list[str] = []
    for name in _folders(folder or "."):
        if not name.startswith(start) or (name.startswith(".") and not start):
            continue
        path = os.path.join(folder, name)
        if _has(path, file):
            found.append(path)
        else:
            found += (os.path.join(path, below) for below in _folders(path) if _has(os.path.join(path, below), file))
    return found


def words(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """What completes one of some words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in choices if word.startswith(incomplete)]

    return complete


def word_list(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """What completes the last of some words with commas between them, to one that is not among the others."""

    def complete(incomplete: str) -> list[str]:
        *before, last = incomplete.split(",")
        return [",".join([*before, word]) for word in choices if word.startswith(last) and word not in before]

    return complete


def _folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in islice(entries, _MOST_ENTRIES) if entry.is_dir())
    except OSError:
        return []


def _has(path: str, file: str) -> bool:
    return os.path.isfile(os.path.join(path, file))
