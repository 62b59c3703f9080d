"""Compiles CUDA kernels for the CPU, and calls their launchers in a process of their own.

A server process holds the kernels of `csrc/kernels/cuda` and, in `ops/<op>.cpp`, what turns a call into their
arguments. It ends with a message at the first mistake of a kernel; `simulator.h` says which ones it sees.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from compiler import CSRC, FOLDER, HERE, alone, compile_source, create, digest
from torch import Tensor

# Every access becomes a call of a function, which watch.cpp defines; simulator.h says how the two differ.
_WATCHES = {
    "bounds": ["-O1", "-g1", "-fsanitize=address", "--param", "asan-instrumentation-with-call-threshold=0"],
    "races": ["-O1", "-g1", "-fsanitize=thread"],
}
_SUPPORT = tuple(HERE / name for name in ("threads.cpp", "watch.cpp", "server.cpp", "library.cpp"))

# By their numbers in csrc/kernels.
INTEGER_TYPES = {
    dtype: number
    for number, dtype in enumerate(
        (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
    )
}
STORAGES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class KernelError(Exception):
    """A kernel did what a GPU would punish, or hide."""


Edit = Callable[[str], str]


def build(op: str, watch: str = "bounds", edits: Mapping[str, Edit] | None = None) -> Path:
    """The server for one op, watched for "bounds" or for "races".

    `edits` change the text of files in csrc/kernels/cuda before they are compiled.
    """
    sources = CSRC
    with alone():
        if edits:
            sources = FOLDER / "edited"
            _copy_edited(sources, edits)
        objects = [compile_source(source, ["-O2", "-g1"]) for source in (*_SUPPORT, HERE / "ops" / f"{op}.cpp")]
        for kernels in _kernels_of(HERE / "ops" / f"{op}.cpp"):
            path = sources / "kernels" / "cuda" / f"{kernels}.cu"
            objects.append(compile_source(path, _WATCHES[watch], sources))
        program = FOLDER / f"{op}-{digest([path.name.encode() for path in objects])}"
        if not program.exists():
            create(program, ["g++", "-fsanitize=address", *map(str, objects)])
        return program


def _kernels_of(source: Path) -> list[str]:
    """The .cu files that a source needs: those of the headers in csrc/kernels that it and they include."""
    seen: list[str] = []
    waiting = [source]
    while waiting:
        for name in re.findall(r'^#include "kernels/(\w+)\.h"', waiting.pop().read_text(), re.MULTILINE):
            if name not in seen:
                seen.append(name)
                waiting += [CSRC / "kernels" / f"{name}.h", *_kernel_file(name)]
    return [name for name in seen if _kernel_file(name)]


def _kernel_file(name: str) -> list[Path]:
    return list((CSRC / "kernels" / "cuda").glob(f"{name}.cu"))


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
        with suppress(BrokenPipeError):  # of what a server that has ended did not read
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
