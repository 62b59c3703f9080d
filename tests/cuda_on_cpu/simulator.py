"""Compiles CUDA kernels for the CPU, and calls their launchers in a process of their own.

A server process holds the kernels of `csrc/kernels/cuda` and, in `ops/<op>.cpp`, what turns a call into their
arguments. It ends with a message at the first mistake of a kernel; `simulator.h` says which ones it sees.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"

_COMPILER = ["g++", "-std=c++20", "-g1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
_COMPILER += ["-Wno-unknown-pragmas", f"-I{HERE}", f"-I{HERE / 'standin'}"]
# Every access becomes a call of a function, which simulator.cpp defines; simulator.h says how the two differ.
_WATCHES = {
    "bounds": ["-O1", "-fsanitize=address", "--param", "asan-instrumentation-with-call-threshold=0"],
    "races": ["-O1", "-fsanitize=thread"],
}
# Named after what they were made of, files in it stay right.
_FOLDER = ROOT / "build" / "cuda_on_cpu"
_SUPPORT = (HERE / "simulator.cpp", HERE / "server.cpp")

STORAGES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class KernelError(Exception):
    """A kernel did what a GPU would punish, or hide."""


Edit = Callable[[str], str]


def build(op: str, watch: str = "bounds", edits: Mapping[str, Edit] | None = None) -> Path:
    """The server for one op, watched for "bounds" or for "races".

    `edits` change the text of files in csrc/kernels/cuda before they are compiled.
    """
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:  # of several test processes one compiles, and the others find its work
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(op, watch, edits or {})


def _build(op: str, watch: str, edits: Mapping[str, Edit]) -> Path:
    sources = CSRC
    if edits:
        sources = _FOLDER / "edited"
        _copy_edited(sources, edits)
    objects = [_compile(source, sources, ["-O2"]) for source in (*_SUPPORT, HERE / "ops" / f"{op}.cpp")]
    objects.append(_compile(sources / "kernels" / "cuda" / f"{op}.cu", sources, _WATCHES[watch]))
    program = _FOLDER / f"{op}-{_digest([path.name.encode() for path in objects])}"
    if not program.exists():
        _create(program, ["g++", "-fsanitize=address", *map(str, objects)])
    return program


def _compile(source: Path, sources: Path, flags: list[str]) -> Path:
    """The object file of a source, named after everything that it was made of, so that nothing is compiled twice."""
    command = [*_COMPILER, *flags, f"-I{sources}"]
    preprocessed = subprocess.run([*command, "-E", "-P", "-x", "c++", str(source)], check=True, stdout=subprocess.PIPE)
    options = " ".join([*_COMPILER, *flags]).encode()
    result = _FOLDER / f"{source.stem}-{_digest([preprocessed.stdout, options])}.o"
    if not result.exists():
        _create(result, [*command, "-c", "-x", "c++", str(source)])
    return result


def _create(path: Path, command: list[str]) -> None:
    """Runs a command that writes a file, which is there when it is whole."""
    temporary = path.with_suffix(f".{os.getpid()}")
    result = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{result.stderr}")
    temporary.replace(path)


def _copy_edited(to: Path, edits: Mapping[str, Edit]) -> None:
    for path in (CSRC / "kernels").rglob("*"):
        if path.suffix not in (".h", ".cuh", ".cu"):
            continue
        text = path.read_text()
        if path.parent.name == "cuda" and path.name in edits:
            edited = edits[path.name](text)
            assert edited != text, f"the edit of {path.name} found nothing to change"
            text = edited
        copy = to / path.relative_to(CSRC)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)


def _digest(parts: list[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


class Server:
    """A running server; `call` runs one op."""

    def __init__(self, program: Path) -> None:
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:color=never"}
        self._process = subprocess.Popen(
            [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()

    def seed(self, value: int) -> None:
        """Sets the order in which threads and blocks run from now on."""
        self.call("seed", value=value)

    def plant(self, number: int) -> None:
        """Puts a fault to work that an edit has written into the kernels as `simulator::fault(number)`."""
        self.call("plant", number=number)

    def call(self, op: str, outputs: Mapping[str, Tensor] | None = None, **arguments: Any) -> None:
        """Runs an op: numbers and tensors by name; what it writes into its copies of `outputs` is copied back.

        A tensor is passed as the memory it covers, from its first element on, at the same distance from a 16-byte
        boundary, and without what lies before and behind.
        """
        outputs = outputs or {}
        request = bytearray()
        for name, value in {**arguments, **outputs}.items():
            if isinstance(value, Tensor):
                memory = memory_of(value)
                kind = "output" if name in outputs else "input"
                request += f"{kind} {name} {len(memory)} {value.data_ptr() % 16}\n".encode()
                request += memory if kind == "input" else b""
            elif isinstance(value, bool | int):
                request += f"integer {name} {int(value)}\n".encode()
            elif isinstance(value, float):
                request += f"real {name} {value!r}\n".encode()
            else:
                assert value is None, f"{name}: {value!r}"
        request += f"run {op}\n".encode()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._error() from None
        status = self._process.stdout.readline()
        if not status:
            raise self._error()
        if int(status) != 0:
            raise KernelError(f"{op}: the launch was refused")
        for name in sorted(outputs):
            destination = memory_of(outputs[name])
            destination[:] = self._process.stdout.read(len(destination))

    def _error(self) -> KernelError:
        assert self._process.stderr is not None
        self._process.wait()
        text = self._process.stderr.read().decode(errors="replace")
        return KernelError(re.sub(r"=+\n", "", text).strip() or f"exit status {self._process.returncode}")


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes from the first element of a tensor to its last, in place."""
    if tensor.numel() == 0:
        return memoryview(bytearray())
    elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((elements,), (1,))
    return memoryview(flat.view(torch.uint8).numpy()).cast("B")


if sys.platform != "linux":
    raise ImportError("the simulator of CUDA kernels switches stacks as Linux does")
