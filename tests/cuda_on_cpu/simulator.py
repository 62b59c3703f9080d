"""Runs what is registered for CUDA, bindings and all, on tensors of the CPU: the simulated GPU.

A library of the bindings in `csrc/bindings/cuda`, as they are, and of their kernels, whose threads and accesses
`simulator.h` is about, registers itself in the place of the ops for the CPU. `device.cpp` says what the bindings see of
a device. Products are torch's of the CPU, where it has them; a few it has on CUDA only, which are here.

The kernels have the faults of `planted_all.py` in them, of which none is at work unless a test asks for it.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils import cpp_extension

from building.cuda import TARGETS
from charlm import _C
from charlm.ops import _direct, _products, _scaling

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
KERNELS = CSRC / "kernels" / "cuda"
# Named after what they were made of, files in it stay right.
FOLDER = ROOT / "build" / "cuda_on_cpu"

_COMPILER = ["g++", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fno-strict-aliasing"]
_COMPILER += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# Every access of a kernel becomes a call of a function, which watch.cpp defines.
_KERNELS, _SIMULATOR = ["-O1", "-fsanitize=thread"], ["-O2"]
# They take longer to compile than they run.
_BINDINGS = ["-O0"]
# `make sanitize` has AddressSanitizer in the place of that watch. It knows where each array of a thread, and each
# static one of shared memory, ends.
_SANITIZE = ["-fsanitize=address", "-g1"] if os.environ.get("CHARLM_SANITIZE") else []
if _SANITIZE:
    _KERNELS = _SIMULATOR = ["-O1", *_SANITIZE]
    _BINDINGS = [*_BINDINGS, *_SANITIZE]
_SUPPORT = [HERE / name for name in ("threads.cpp", "watch.cpp", "device.cpp", "gpus.cpp")]
_SUFFIXES = (".h", ".cpp", ".cu", ".cuh")

# Of the name of a file of KERNELS and its text: the text to compile.
Edit = Callable[[str, str], str]
# Python holds the registrations, which end with it.
_registrations: list[torch.library.Library] = []
_library: ctypes.CDLL | None = None


def load(edit: Edit) -> None:
    """From now on the ops in this process run what is registered for CUDA, once loaded for good.

    `edit` may change the kernels before they are compiled.
    """
    global _library
    if _library is not None:
        return
    if sys.platform != "linux":
        raise pytest.UsageError("--device simulated runs on Linux: it switches stacks and links as one does there")
    path = _build(edit)
    with _silence():  # torch says on it that the CPU's ops are overridden
        torch.ops.load_library(path)
    _library = ctypes.CDLL(str(path))
    last_branch = _library.simulator_last_branch
    last_branch.restype = ctypes.c_char_p
    _C.last_branch = lambda: last_branch().decode()
    _library.simulator_why_no_kernels.restype = ctypes.c_char_p
    _C.why_no_kernels = _why_no_kernels
    _library.simulator_trains_in_one_launch.restype = ctypes.c_bool
    _library.simulator_trains_in_one_launch.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 4, *[ctypes.c_bool] * 2]
    _C.trains_in_one_launch = _library.simulator_trains_in_one_launch
    for gpu in GPUS[1:]:
        _index_of(gpu)
    charlm, aten = torch.library.Library("charlm", "IMPL"), torch.library.Library("aten", "IMPL")
    charlm.impl("multiply_add", _products.multiply_add, "CPU")
    charlm.impl("scale_gradients_", _scaling.scale_gradients, "CPU")
    aten.impl("mm.dtype_out", _mm, "CPU")
    aten.impl("addmm.dtype_out", _addmm, "CPU")
    _registrations.extend([charlm, aten])
    # Which tensors of the CPU would have, and those of a GPU have not.
    _direct.serves = lambda _: False
    _direct.is_plain_backward = lambda: False
    importlib.import_module("charlm.ops.cross_entropy")._gradient_in_forward = lambda *_: False
    importlib.import_module("charlm.ops.linear_log_probs")._is_worth_keeping = lambda _: False


def watch(on: bool, seed: int = 0) -> None:
    """Whether launches are watched, their threads and blocks in an order that the seed decides."""
    assert _library is not None
    _library.simulator_watch(on)
    _library.simulator_seed(ctypes.c_uint64(seed))


def plant(number: int) -> None:
    """Puts a fault to work that an edit has written into the kernels as `simulator::fault(number)`; 0: none."""
    assert _library is not None
    _library.simulator_plant(number)


@dataclass(frozen=True)
class Gpu:
    """A GPU to simulate: its compute capability, the shared memory of a block, the newest CUDA of its driver, and how
    many blocks it is to keep busy."""

    capability: str
    shared_kib: int
    driver: str = "13.1"
    multiprocessors: int = 3


# cuda:0, where all is unless a test says otherwise, and cuda:1.
GPUS = (Gpu("9.0", 227), Gpu("8.0", 163))
_indices: dict[Gpu, int] = {GPUS[0]: 0}


@contextmanager
def tensors_on(gpu: Gpu) -> Iterator[int]:
    """All tensors are on a GPU, whose index this is."""
    assert _library is not None
    index = _index_of(gpu)
    _library.simulator_place_tensors(index)
    try:
        yield index
    finally:
        _library.simulator_place_tensors(0)


def _index_of(gpu: Gpu) -> int:
    """That of the GPU, which is there from now on."""
    assert _library is not None
    if gpu not in _indices:
        capability, (major, minor) = int(gpu.capability.replace(".", "")), map(int, gpu.driver.split("."))
        _indices[gpu] = _library.simulator_add_gpu(
            capability, 1000 * major + 10 * minor, gpu.shared_kib << 10, gpu.multiprocessors
        )
    return _indices[gpu]


@contextmanager
def current_device(index: int) -> Iterator[None]:
    """A GPU is this thread's current one, and must be so at the end."""
    assert _library is not None
    _library.simulator_set_device(index)
    try:
        yield
        assert _library.simulator_current_device() == index
    finally:
        _library.simulator_set_device(0)


@contextmanager
def stream(number: int) -> Iterator[None]:
    """Torch's current stream is another one than that of number 0."""
    assert _library is not None
    _library.simulator_choose_stream(number)
    try:
        yield
    finally:
        _library.simulator_choose_stream(0)


@contextmanager
def memory_for(calls: int) -> Iterator[Callable[[], bool]]:
    """So many of torch's functions that bindings call get memory, and the next one gets none.

    Yields:
        What tells whether it came to that; then, all get memory again.
    """
    assert _library is not None
    _library.simulator_limit_memory(calls)
    try:
        yield lambda: _library.simulator_limit_memory(-1) < 0
    finally:
        _library.simulator_limit_memory(-1)


def _why_no_kernels(device: int) -> str | None:
    assert _library is not None
    why = _library.simulator_why_no_kernels(device)
    return None if why is None else why.decode()


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


def _build(edit: Edit) -> Path:
    """The library, named after everything that it is made of; of several test processes one compiles it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = _edited(edit)
        inputs = [
            path for folder in (sources, HERE) for path in sorted(folder.rglob("*.*")) if path.suffix in _SUFFIXES
        ]
        made_by = [torch.__version__.encode(), *map(str.encode, _SANITIZE), Path(__file__).read_bytes()]
        library = FOLDER / f"simulator-{_digest([*made_by, *(path.read_bytes() for path in inputs)])}.so"
        if not library.exists():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(lambda path: _compile(path, sources), _sources(sources)))
            _create(library, ["g++", "-shared", *_SANITIZE, *map(str, objects), *_link_flags()])
    return library


def _edited(edit: Edit) -> Path:
    """A copy of csrc with changes."""
    copy = FOLDER / "edited"
    shutil.rmtree(copy, ignore_errors=True)  # a file may be there no longer
    for path in CSRC.rglob("*.*"):
        if path.suffix not in _SUFFIXES:
            continue
        text = path.read_text()
        if path.parent == KERNELS:
            text = edit(path.name, text)
        to = copy / path.relative_to(CSRC)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text)
    return copy


def _sources(csrc: Path) -> list[Path]:
    """Kernels first, which take longest; of the bindings, all but those for the CPU's ops and for Python."""
    kernels = sorted((csrc / "kernels" / "cuda").glob("*.cu"), key=lambda path: -path.stat().st_size)
    shared = [path for path in (csrc / "bindings").glob("*.cpp") if not _is_for_the_cpu(path)]
    return [*kernels, *(csrc / "bindings" / "cuda").glob("*.cpp"), *shared, *_SUPPORT]


def _is_for_the_cpu(path: Path) -> bool:
    return re.search(r"\b(STABLE_TORCH_LIBRARY|PyObject)", path.read_text()) is not None


def _compile(source: Path, csrc: Path) -> Path:
    """The object file of a source, named after everything that it was made of."""
    includes = [f"-I{HERE}", f"-I{HERE / 'standin'}", f"-I{csrc}"]
    includes += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    # The version of the stable interface that the extension itself is built for.
    version = int(str(_C.build_info()["torch_target_version"])) << 48
    macros = [f"-DTORCH_TARGET_VERSION={version:#x}", f'-DCHARLM_CUDA_ARCHITECTURES="{" ".join(TARGETS)}"']
    kind = _KERNELS if source.suffix == ".cu" else _SIMULATOR if source.parent == HERE else _BINDINGS
    options = [*_COMPILER, *kind]
    command = [*options, *includes, *macros]
    preprocessed = subprocess.run([*command, "-E", "-P", "-x", "c++", str(source)], check=True, stdout=subprocess.PIPE)
    result = FOLDER / f"{source.stem}-{_digest([preprocessed.stdout, ' '.join(options).encode()])}.o"
    if not result.exists():
        _create(result, [*command, "-c", "-x", "c++", str(source)])
    return result


def _create(path: Path, command: Sequence[str]) -> None:
    """Runs a command that writes a file, which is there when it is whole."""
    temporary = path.with_suffix(f".{os.getpid()}")
    result = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{result.stderr}")
    temporary.replace(path)


def _digest(parts: Sequence[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _link_flags() -> list[str]:
    wrapped = re.findall(r"__wrap_(\w+)\(", (HERE / "device.cpp").read_text())
    torch_flags = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-ltorch", "-lc10"]
    # What only the CPU's ops use goes, and with it what it would need.
    return [*(f"-Wl,--wrap={name}" for name in wrapped), "-Wl,--gc-sections,-z,defs,-Bsymbolic", *torch_flags]


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
