"""nvcc, and the toolkit that it belongs to."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

# T4, A100, H100 and H200, B200. A GPU runs what is compiled for the same major version of its compute capability, as an
# L4 (8.9) does sm_80; later ones compile the intermediate code of the last one when they load it.
ARCHITECTURES = ("75", "80", "90", "100")
TARGETS = [f"sm_{number}" for number in ARCHITECTURES] + [f"compute_{ARCHITECTURES[-1]}"]
# Line numbers are for compute-sanitizer and the profilers, and change no instruction. They would more than double the
# binary; packed as small as can be, it is smaller than without them. A driver for CUDA 12.4 or newer unpacks it.
FLAGS = ["-std=c++20", "-O3", "-lineinfo", "--compress-mode=size", "-Xcompiler=-fPIC,-fvisibility=hidden"]
FLAGS += ["-Xptxas=-v", "--threads=0"]
FLAGS += [f"-gencode=arch=compute_{target.split('_')[1]},code={target}" for target in TARGETS]


def find_nvcc() -> list[str]:
    """The command that is CUDA's compiler, `$NVCC` or nvcc; empty where kernels for GPUs are not to be built.

    Unless they are asked for, that is where the torch that is installed could not use them.
    """
    wanted = os.environ.get("CHARLM_CUDA") or "auto"
    if wanted not in ("0", "1", "auto"):
        sys.exit(f"CHARLM_CUDA must be 0, 1 or auto, got {wanted!r}")
    if wanted == "0" or (wanted == "auto" and not _torch_has_cuda()):
        return []
    nvcc = shlex.split(os.environ.get("NVCC", "nvcc"))
    if shutil.which(nvcc[0]) is None:
        if wanted == "1":
            sys.exit(
                f"CHARLM_CUDA=1 asks for kernels for GPUs, but there is no {nvcc[0]}. Install CUDA (12.8 or newer) "
                "and put its nvcc on the PATH or into NVCC; or build without them: CHARLM_CUDA=0"
            )
        return []
    return nvcc


def _torch_has_cuda() -> bool:
    """A build for AMD's GPUs has ROCm in the place of CUDA."""
    from torch.version import cuda

    return cuda is not None


def runtime(nvcc: list[str]) -> list[str]:
    """What links the kernels for GPUs: a runtime of their own, so that the same binary loads where torch has none."""
    toolkit = _toolkit(nvcc)
    found = [path for folder in ("lib64", "lib") for path in sorted(toolkit.glob(f"{folder}/libcudart_static.a"))]
    if not found:
        sys.exit(f"the CUDA toolkit in {toolkit} lacks libcudart_static.a: install it, or set CHARLM_CUDA=0")
    return [str(found[0]), "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL"]


def _toolkit(nvcc: list[str]) -> Path:
    """Where the toolkit of an nvcc is, which may be a link or a script somewhere else."""
    plan = subprocess.run([*nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", plan, re.MULTILINE)
    if top is None:
        sys.exit(f"{shlex.join(nvcc)} does not say where its toolkit is:\n{plan}")
    return Path(top[1]).resolve()
