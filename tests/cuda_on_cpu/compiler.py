"""Compiles C++ files for the simulator, each version of each once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
# Named after what they were made of, files in it stay right.
FOLDER = ROOT / "build" / "cuda_on_cpu"

_COMPILER = ["g++", "-std=c++20", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
_COMPILER += [f"-I{HERE}", f"-I{HERE / 'standin'}"]


@contextmanager
def alone() -> Iterator[None]:
    """Of several test processes one compiles, and the others find its work."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile_source(source: Path, flags: Sequence[str], sources: Path = CSRC) -> Path:
    """The object file of a source, named after everything that it was made of."""
    command = [*_COMPILER, *flags, f"-I{sources}"]
    preprocessed = subprocess.run([*command, "-E", "-P", "-x", "c++", str(source)], check=True, stdout=subprocess.PIPE)
    options = " ".join([*_COMPILER, *flags]).encode()
    result = FOLDER / f"{source.stem}-{digest([preprocessed.stdout, options])}.o"
    if not result.exists():
        create(result, [*command, "-c", "-x", "c++", str(source)])
    return result


def create(path: Path, command: Sequence[str]) -> None:
    """Runs a command that writes a file, which is there when it is whole."""
    temporary = path.with_suffix(f".{os.getpid()}")
    result = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{result.stderr}")
    temporary.replace(path)


def digest(parts: Sequence[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
