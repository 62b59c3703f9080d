"""Builds the two extension modules; everything declarative is in pyproject.toml.

``charlm._C``     kernels and op bindings: libtorch stable ABI + abi3, one binary for every torch >= 2.10.
``charlm._text``  pybind11: text to tokens, the context index; includes no torch header.

The CPU kernels are compiled once per instruction set into static libraries, and one set is picked at run time. Where
there is nvcc, the CUDA kernels become one more, for whatever torch is installed; CHARLM_CUDA=0 leaves them out, and
CHARLM_CUDA=1 insists on them. Sources are globbed: adding an op never edits this file.

``building`` has how: what must be there before anything is compiled, nvcc, the command for the libraries, and what pip
calls, which calls this.
"""

import os
import platform
import sys
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import setup

from building import cuda, description, prerequisites
from building.kernels import BuildKernels, Library
from charlm._version import OLDEST_TORCH

# The oldest libtorch whose stable ABI the bindings may call.
TORCH_TARGET_VERSION = f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"

# -g0: Python's own flags ask for debug information, which doubles the build time.
CXX_FLAGS = ["-std=c++20", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]
# Contraction lets a * b + c be one instruction. GCC 12 warns of its own AVX-512 intrinsics (GCC bug 105593).
KERNEL_FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-Wno-uninitialized"]
# The torch headers leave parameters unused.
BINDING_FLAGS = ["-O2", "-Wno-unused-parameter", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]

INSTRUCTION_SETS = (
    {"x86_64": ["-march=x86-64"], "x86_64_v3": ["-march=x86-64-v3"], "x86_64_v4": ["-march=x86-64-v4"]}
    if platform.machine() in ("x86_64", "AMD64")
    else {"generic": []}
)

# A build for tests, as `make sanitize` makes it: an access out of bounds or an operation without a defined result ends
# the program with a report. One copy of the kernels, for the machine at hand.
SANITIZE_FLAGS: list[str] = []
if os.environ.get("CHARLM_SANITIZE") == "1":
    SANITIZE_FLAGS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=vptr"]
    SANITIZE_FLAGS += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g1", "-D_GLIBCXX_ASSERTIONS"]
    CXX_FLAGS.remove("-g0")
    KERNEL_FLAGS.remove("-O3")
    BINDING_FLAGS.remove("-O2")
    KERNEL_FLAGS += SANITIZE_FLAGS
    BINDING_FLAGS += SANITIZE_FLAGS
    CXX_FLAGS.append("-DCHARLM_GENERIC")
    INSTRUCTION_SETS = {"generic": ["-march=native"]}
# Absolute: ninja compiles from the build folder.
INCLUDE = str(Path(__file__).parent.resolve() / "csrc")
HEADERS = sorted(glob("csrc/**/*.h", recursive=True))
KERNELS = sorted(glob("csrc/kernels/cpu/*.cpp"))
CUDA_HEADERS = sorted(glob("csrc/kernels/cuda/*.cuh"))
CUDA_KERNELS = sorted(glob("csrc/kernels/cuda/*.cu"))


def kernel_library(name: str, flags: list[str]) -> Library:
    """The CPU kernels compiled for one instruction set, inside namespace charlm::cpu::isa_<name>."""
    return (
        f"charlm_kernels_{name}",
        {
            "sources": KERNELS,
            "depends": HEADERS,
            "include_dirs": [INCLUDE],
            "macros": [("CHARLM_ISA", name)],
            "cflags": [*CXX_FLAGS, *KERNEL_FLAGS, *flags],
        },
    )


def cuda_library(nvcc: list[str]) -> Library:
    """The kernels for GPUs."""
    return (
        "charlm_kernels_cuda",
        {
            "sources": CUDA_KERNELS,
            "depends": HEADERS + CUDA_HEADERS,
            "include_dirs": [INCLUDE],
            "nvcc": nvcc,
            "cflags": cuda.FLAGS,
        },
    )


def compiled() -> dict[str, Any]:
    """What is compiled, and by what: asked for when something is to be compiled, and stops where that cannot be."""
    prerequisites.check_tools()
    prerequisites.check_torch()
    if prerequisites.check_compiler() == "gcc":
        KERNEL_FLAGS.append("-Wno-maybe-uninitialized")
    nvcc = cuda.find_nvcc()

    from pybind11.setup_helpers import Pybind11Extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    # What torch tells ninja of a compiler with options, or of ccache in front of one, is wrong.
    use_ninja = not any(" " in os.environ.get(name, "") for name in ("CC", "CXX"))

    libraries = [kernel_library(name, flags) for name, flags in INSTRUCTION_SETS.items()]
    bindings = sorted(glob("csrc/bindings/*.cpp"))
    if nvcc:
        libraries.append(cuda_library(nvcc))
        bindings.remove("csrc/bindings/without_cuda.cpp")
        bindings += sorted(glob("csrc/bindings/cuda/*.cpp"))
        BINDING_FLAGS.append(f'-DCHARLM_CUDA_ARCHITECTURES="{" ".join(cuda.TARGETS)}"')
    return {
        "libraries": libraries,
        "ext_modules": [
            CppExtension(
                "charlm._C",
                bindings + sorted(glob("csrc/kernels/*.cpp")),
                include_dirs=[INCLUDE],
                depends=HEADERS + KERNELS + CUDA_HEADERS + CUDA_KERNELS,  # the libraries it links
                extra_compile_args={"cxx": [*CXX_FLAGS, *BINDING_FLAGS]},
                extra_link_args=[*SANITIZE_FLAGS, *(cuda.runtime(nvcc) if nvcc else [])],
                py_limited_api=True,
            ),
            Pybind11Extension(
                "charlm._text",
                sorted(glob("csrc/text/*.cpp")),
                cxx_std=20,
                depends=HEADERS,
                extra_compile_args=SANITIZE_FLAGS,
                extra_link_args=SANITIZE_FLAGS,
            ),
        ],
        "cmdclass": {"build_clib": BuildKernels, "build_ext": BuildExtension.with_options(use_ninja=use_ninja)},
    }


# What does not compile needs nothing of that. The sources are those of MANIFEST.in, the same wherever they are packed.
setup(**description.arguments(), **({} if {"sdist", "egg_info", "dist_info"} & set(sys.argv) else compiled()))
