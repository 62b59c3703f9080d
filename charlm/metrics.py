"""metrics.jsonl of a run: one record, a JSON object with an integer "step", a line."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from charlm import run_folder
from charlm.run_folder import CheckpointError, blamed
from charlm.run_lock import locked
from charlm.schema import checked, parse_json

FILE = "metrics.jsonl"
# Bytes of a line; those of charlm have about a hundred.
_MAX_RECORD = 1 << 16


def append_metrics(run_dir: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Appends records, each with an integer "step", to metrics.jsonl; numbers that are not finite become null."""
    lines = []
    for record in records:
        if not _is_step(record.get("step")):
            raise ValueError(f"a metrics record must have an integer 'step', got {dict(record)}")
        finite = {name: None if _is_non_finite(value) else value for name, value in record.items()}
        lines.append(json.dumps(finite, allow_nan=False) + "\n")
    if lines:
        with locked(Path(run_dir)):
            run_folder.append(Path(run_dir) / FILE, "".join(lines).encode())


def read_metrics(run_dir: str | os.PathLike[str], *, at_most: int | None = None) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in order; empty without the file. A last line cut off by a crash does not count.

    Args:
        run_dir: the folder of the run.
        at_most: how many there can be, such as the steps of the run.

    Raises:
        CheckpointError: another line is not a record, or there are more.
    """
    return [record for _, record in _records(Path(run_dir) / FILE, at_most)]


def truncate_metrics(run_dir: str | os.PathLike[str], step: int) -> None:
    """Drops, atomically, the records after `step`: what a resumed run is going to write again."""
    run_dir = Path(run_dir)
    path = run_dir / FILE
    with locked(run_dir):
        if not os.path.lexists(path):
            return
        run_folder.replace(path, (line for line, record in _records(path, None) if record["step"] <= step))


def _records(path: Path, at_most: int | None) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of metrics.jsonl and their records, one at a time."""
    try:
        file, _ = run_folder.open_regular(path)
    except FileNotFoundError:
        return
    with io.BufferedReader(file) as lines:
        number = 0
        while (line := lines.readline(_MAX_RECORD)).endswith(b"\n"):
            number += 1
            with blamed(path, f", line {number}, is not JSON"):
                record = parse_json(line)
            if not isinstance(record, dict) or not _is_step(record.get("step")):
                raise CheckpointError(f"{path}, line {number}, is not a record with an integer 'step'")
            for name in ("loss", "dev"):
                with blamed(path, f", line {number}"):
                    checked(record.get(name), float | None, name)
            if at_most is not None and number > at_most:
                raise CheckpointError(f"{path} has more than the {at_most} records that the steps of the run can have")
            yield line, record
        if len(line) == _MAX_RECORD:
            raise CheckpointError(f"{path}, line {number + 1}, is longer than a record can be ({_MAX_RECORD} bytes)")


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_non_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
