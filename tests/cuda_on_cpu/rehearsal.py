"""Runs what is registered for CUDA, bindings and all, on tensors of the CPU: the rehearsal of a GPU.

A library of the bindings in `csrc/bindings/cuda`, as they are, and of their kernels, which the simulator runs without
its watch, registers itself in the place of the ops for the CPU. `device.cpp` says what the bindings see of a device.
Products are torch's of the CPU, where it has them; a few it has on CUDA only, which are here.
"""

from __future__ import annotations

import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from compiler import CSRC, HERE, ROOT, alone, compile_source, link
from torch import Tensor
from torch.utils import cpp_extension

from charlm.ops import _products

_FLAGS = ["-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections"]
_SUPPORT = [HERE / name for name in ("threads.cpp", "without_watch.cpp", "device.cpp")]
# Python holds the registrations, which end with it.
_libraries: list[torch.library.Library] = []


def load() -> None:
    """From now on the ops in this process run what is registered for CUDA, once loaded for good."""
    if _libraries:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Overriding a previously registered kernel.*")
        torch.ops.load_library(_build())
    charlm, aten = torch.library.Library("charlm", "IMPL"), torch.library.Library("aten", "IMPL")
    charlm.impl("multiply_add", _products.multiply_add, "CPU")
    aten.impl("mm.dtype_out", _mm, "CPU")
    aten.impl("addmm.dtype_out", _addmm, "CPU")
    _libraries.extend([charlm, aten])


def _build() -> Path:
    """The library; all of the bindings that registers no op for the CPU is in it, and what nothing calls goes."""
    sources = [path for path in sorted((CSRC / "bindings").glob("*.cpp")) if not _registers(path)]
    sources += [*sorted((CSRC / "bindings" / "cuda").glob("*.cpp")), *_SUPPORT]
    sources += sorted((CSRC / "kernels" / "cuda").glob("*.cu"))
    flags = [*_FLAGS, *(f"-isystem{path}" for path in cpp_extension.include_paths())]
    flags.append(f"-DTORCH_TARGET_VERSION={_target_version()}")
    with alone():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda path: compile_source(path, flags), sources))
        wrapped = [f"-Wl,--wrap={name}" for name in re.findall(r"__wrap_(\w+)\(", (HERE / "device.cpp").read_text())]
        torch_libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch_cpu", "-ltorch", "-lc10"]
        unused = ["-Wl,--gc-sections", "-Wl,-z,defs"]
        return link("rehearsal", objects, ["-shared", *wrapped, *unused, *torch_libraries], ".so")


def _registers(path: Path) -> bool:
    return re.search(r"\b(STABLE_TORCH_LIBRARY|PyInit)", path.read_text()) is not None


def _target_version() -> str:
    """The version of the stable interface that the extension itself is built for."""
    found = re.search(r'^TORCH_TARGET_VERSION = "(\w+)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


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
