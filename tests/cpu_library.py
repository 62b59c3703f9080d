"""Parts of the CPU kernels as libraries of C functions, one for each instruction set that this machine can run."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
from pathlib import Path

from building import instruction_sets

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
# Those that setup.py has for kernels.
KERNEL_FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno"]


@functools.cache
def libraries(name: str) -> dict[str, ctypes.CDLL]:
    """tests/`name` compiled for each instruction set; what a processor lacks is emulated where it can be.

    The file says by a function `is_supported` whether the machine can run what it was compiled for.
    """
    built = {}
    for instruction_set in instruction_sets.FLAGS:
        flags = instruction_sets.emulated_flags(instruction_set)
        library = ctypes.CDLL(str(_compiled(name, [*KERNEL_FLAGS, *flags, f"-DCHARLM_ISA={instruction_set}"])))
        library.is_supported.restype = ctypes.c_bool
        if library.is_supported():
            built[instruction_set] = library
    return built


def _compiled(name: str, flags: list[str]) -> Path:
    """The library, named after all that it is made of."""
    sources = [ROOT / "tests" / name, CSRC / "kernels" / "isa.cpp"]
    command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{CSRC}", *flags, *map(str, sources)]
    headers = [path for pattern in ("*.h", "kernels/cpu/*.cpp") for path in sorted(CSRC.rglob(pattern))]
    parts = [" ".join(command).encode(), *(path.read_bytes() for path in [*sources, *headers])]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    path = ROOT / "build" / "cpu_library" / f"{Path(name).stem}-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(temporary)], check=True)
        temporary.replace(path)
    return path
