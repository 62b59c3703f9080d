"""How much memory steps take: the most that a process of their own holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

Prepare = Callable[[], Callable[[], object]]

_STATUS, _MARKS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_STEPS = 3  # the first makes the state of the optimizer


def peak_bytes(prepare: Prepare, threads: int) -> int | None:
    """The most resident bytes during three steps, beyond those before the first; None where there is no Linux to ask.

    Args:
        prepare: returns the step; it is called in a new process, which has nothing left from other steps.
        threads: of torch and charlm there.
    """
    if not _MARKS.exists():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of, prepare, threads).result()


def _peak_of(prepare: Prepare, threads: int) -> int:
    torch.set_num_threads(threads)
    step = prepare()
    peak = peak_from_here()
    for _ in range(_STEPS):
        step()
    return peak()


def peak_from_here() -> Callable[[], int]:
    """What this process has held at most since, in resident bytes beyond those it holds now (Linux alone).

    Memory that its allocator keeps from earlier work is held now: what is measured to the byte needs a new process.
    """
    # Not getrusage: its mark has what was taken before, and starts at what the parent process holds.
    _MARKS.write_text(_RESET_PEAK)
    before = _resident_bytes("VmRSS")
    return lambda: _resident_bytes("VmHWM") - before


def _resident_bytes(entry: str) -> int:
    found = re.search(rf"^{entry}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
