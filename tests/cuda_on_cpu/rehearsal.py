"""Runs what is registered for CUDA, bindings and all, on tensors of the CPU: the rehearsal of a GPU.

A library of the bindings in `csrc/bindings/cuda`, as they are, and of their kernels, which the simulator runs without
its watch, registers itself in the place of the ops for the CPU. `device.cpp` says what the bindings see of a device.
Products are torch's of the CPU, where it has them; a few it has on CUDA only, which are here.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from compiler import CSRC, FOLDER, HERE, alone, compile_source, create, digest
from torch import Tensor
from torch.utils import cpp_extension

from charlm import _C
from charlm.ops import _products, _scaling

_FLAGS = ["-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections"]
_SUPPORT = [HERE / name for name in ("threads.cpp", "without_watch.cpp", "device.cpp")]
_SUFFIXES = (".h", ".cpp", ".cu", ".cuh")
# Python holds the registrations, which end with it.
_libraries: list[torch.library.Library] = []


def load() -> None:
    """From now on the ops in this process run what is registered for CUDA, once loaded for good."""
    if _libraries:
        return
    if sys.platform != "linux":
        raise pytest.UsageError("--device simulated runs on Linux: it switches stacks and links as one does there")
    path = _build()
    with _silence():  # torch says on it that the CPU's ops are overridden
        torch.ops.load_library(path)
    last_branch = ctypes.CDLL(str(path)).rehearsal_last_branch
    last_branch.restype = ctypes.c_char_p
    _C.last_branch = lambda: last_branch().decode()
    charlm, aten = torch.library.Library("charlm", "IMPL"), torch.library.Library("aten", "IMPL")
    charlm.impl("multiply_add", _products.multiply_add, "CPU")
    charlm.impl("scale_gradients_", _scaling.scale_gradients, "CPU")
    aten.impl("mm.dtype_out", _mm, "CPU")
    aten.impl("addmm.dtype_out", _addmm, "CPU")
    _libraries.extend([charlm, aten])


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing reaches standard error, not even from C++."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _build() -> Path:
    """The library, named after everything that it is made of."""
    inputs = [path for folder in (CSRC, HERE) for path in sorted(folder.rglob("*.*")) if path.suffix in _SUFFIXES]
    library = FOLDER / f"rehearsal-{digest([torch.__version__.encode(), *(path.read_bytes() for path in inputs)])}.so"
    with alone():
        if not library.exists():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(_compile, _sources()))
            create(library, ["g++", "-shared", *map(str, objects), *_link_flags()])
    return library


def _sources() -> list[Path]:
    """Of the bindings, all but those that register ops for the CPU or for Python."""
    shared = [path for path in (CSRC / "bindings").glob("*.cpp") if not _registers(path)]
    return [*shared, *(CSRC / "bindings" / "cuda").glob("*.cpp"), *(CSRC / "kernels" / "cuda").glob("*.cu"), *_SUPPORT]


def _compile(source: Path) -> Path:
    torch_flags = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    macros = [f"-DTORCH_TARGET_VERSION={_target_version()}", '-DCHARLM_CUDA_ARCHITECTURES="simulated"']
    return compile_source(source, [*_FLAGS, *torch_flags, *macros])


def _link_flags() -> list[str]:
    wrapped = re.findall(r"__wrap_(\w+)\(", (HERE / "device.cpp").read_text())
    torch_flags = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-ltorch", "-lc10"]
    # What only the CPU's ops use goes, and with it what it would need.
    return [*(f"-Wl,--wrap={name}" for name in wrapped), "-Wl,--gc-sections", "-Wl,-z,defs", *torch_flags]


def _registers(path: Path) -> bool:
    return re.search(r"\b(STABLE_TORCH_LIBRARY|PyInit)", path.read_text()) is not None


def _target_version() -> str:
    """The version of the stable interface that the extension itself is built for."""
    return hex(int(str(_C.build_info()["torch_target_version"])) << 48)


def _mm(self: Tensor, mat2: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
    _check_products(self, mat2, out_dtype, out)
    return out.copy_(self.to(out_dtype) @ mat2.to(out_dtype))


def _addmm(
    self: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    out_dtype: torch.dtype,
    *,
    beta: float = 1,
    alpha: float = 1,
    out: Tensor,
) -> Tensor:
    _check_products(mat1, mat2, out_dtype, out)
    return out.copy_(torch.addmm(self, mat1.to(out_dtype), mat2.to(out_dtype), beta=beta, alpha=alpha))


def _check_products(a: Tensor, b: Tensor, out_dtype: torch.dtype, out: Tensor) -> None:
    """What torch asks of these products on CUDA."""
    assert a.dtype == b.dtype
    assert out.dtype == out_dtype
    assert out_dtype == a.dtype or (out_dtype == torch.float32 and a.dtype in (torch.float16, torch.bfloat16))
