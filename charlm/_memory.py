"""How much memory there is: what can never fit is refused before any of it is taken."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

# Of a container: version 2 and version 1 of Linux's control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@cache
def total_memory() -> int | None:
    """Bytes of memory that this machine, or its container, has; None where that cannot be told."""
    sizes = []
    with suppress(ValueError, OSError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _LIMITS:
        # Without limit it says "max", and it is not there on other machines.
        with suppress(ValueError, OSError):
            sizes.append(int(Path(path).read_text()))
    return min(sizes, default=None)


def check_memory(what: str, size: int) -> None:
    """ValueError where `size` bytes are more than all memory; `what` takes them, with the arguments that say so."""
    total = total_memory()
    if total is not None and size > total:
        raise ValueError(f"{what} takes {_shown(size)} of memory, and this machine has {_shown(total)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch has a class for that on a GPU only, and not of what an op reports."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = ("can't allocate memory", "out of memory")  # by the CPU's allocator, and by CUDA's in an error of an op
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def _shown(size: int) -> str:
    """Three digits in the unit that fits, also of sizes that no float can hold."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
    unit = min((len(str(size)) - 1) // 3, len(units) - 1)
    scaled = size / 1000**unit if size < 10**300 else float("inf")
    return f"{scaled:.3g} {units[unit]}"
