"""A small data set for tests of training: the first of the embedded names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from charlm import data


def load(folder: Path, **options: Any) -> data.Dataset:
    """The data set of 400 names, as `charlm.data.load` makes it with `options`."""
    path = folder / "small_names.txt"
    path.write_text("\n".join(data.EMBEDDED_NAMES.read_text().splitlines()[:400]) + "\n")
    return data.load(path, **options)
