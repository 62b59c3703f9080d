"""Builds the two extension modules; everything declarative is in pyproject.toml.

``charlm._C``     kernels and op bindings: libtorch stable ABI + abi3, one binary for every torch >= 2.10.
``charlm._text``  pybind11: text to tokens, the context index; includes no torch header.

The CPU kernels are compiled once per instruction set, and one set is picked at run time. A build in place, such as
pip's editable one, stays on this machine, and has the best set of it alone; CHARLM_ISA=all compiles all of them there
too. Where there is nvcc, and the torch that is installed is a build for CUDA, the CUDA kernels are compiled too, for
whatever torch will run them; CHARLM_CUDA=0 leaves them out, and CHARLM_CUDA=1 insists on them. Sources are globbed:
adding an op never edits this file.

``building`` has how: what must be there before anything is compiled, the sets, nvcc, the command that compiles, and
what pip calls, which calls this.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

from building import cuda, description, instruction_sets, prerequisites
from building.compile import BuildModules, Objects, module
from charlm._version import OLDEST_TORCH

# The oldest libtorch whose stable ABI, and the oldest Python whose limited API, the bindings may call.
TORCH_TARGET_VERSION = f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
PYTHON_TARGET_VERSION = "0x030a0000"

SOURCES = Path("csrc")
# -g0: Python's own flags ask for debug information, which doubles the build time.
CXX_FLAGS = ["-std=c++20", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]
CXX_FLAGS.append(f"-I{SOURCES}")
# Contraction lets a * b + c be one instruction. GCC 12 warns of its own AVX-512 intrinsics (GCC bug 105593).
KERNEL_FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-Wno-uninitialized"]
# The torch headers leave parameters unused.
BINDING_FLAGS = ["-O2", "-Wno-unused-parameter", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
BINDING_FLAGS.append(f"-DPy_LIMITED_API={PYTHON_TARGET_VERSION}")
# It calls what takes the time, in the other files.
TEXT_BINDING_FLAGS = ["-O1"]

# A build for tests, as `make sanitize` makes it: an access out of bounds or an operation without a defined result ends
# the program with a report.
IS_SANITIZED = os.environ.get("CHARLM_SANITIZE") == "1"
SANITIZE_FLAGS: list[str] = []
if IS_SANITIZED:
    SANITIZE_FLAGS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=vptr"]
    SANITIZE_FLAGS += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g1", "-D_GLIBCXX_ASSERTIONS"]
    CXX_FLAGS.remove("-g0")
    KERNEL_FLAGS.remove("-O3")
    BINDING_FLAGS.remove("-O2")
    CXX_FLAGS += SANITIZE_FLAGS


# A build that is imported from among its sources runs on this machine.
IS_IN_PLACE = bool({"editable_wheel", "--inplace", "-i"} & set(sys.argv))


def sources(*patterns: str) -> list[str]:
    return [str(path) for pattern in patterns for path in sorted(SOURCES.glob(pattern))]


def modules() -> list[Extension]:
    """What is compiled, and by what: asked for when something is to be compiled, and stops where that cannot be."""
    prerequisites.check_tools()
    prerequisites.check_torch()
    is_gcc = prerequisites.check_compiler() == "gcc"
    if is_gcc:
        KERNEL_FLAGS.append("-Wno-maybe-uninitialized")
    sets = instruction_sets.wanted(IS_SANITIZED or IS_IN_PLACE, str(SOURCES))
    only = [f"-DCHARLM_ONLY_ISA={name}" for name in sets] if len(sets) == 1 else []
    nvcc = cuda.find_nvcc()

    from pybind11.setup_helpers import Pybind11Extension
    from torch.utils.cpp_extension import CppExtension

    bindings = sources("bindings/*.cpp")
    if nvcc:
        bindings.remove(str(SOURCES / "bindings/without_cuda.cpp"))
        bindings += sources("bindings/cuda/*.cpp")
        BINDING_FLAGS.append(f'-DCHARLM_CUDA_ARCHITECTURES="{" ".join(cuda.TARGETS)}"')

    text = sources("text/*.cpp")
    text_bindings = [path for path in text if path.endswith("bindings.cpp")]
    # In the order in which they are compiled: what takes longest comes first, and the many short ones last.
    text_objects = [
        Objects("text_bindings", text_bindings, [*CXX_FLAGS, *TEXT_BINDING_FLAGS]),
        Objects("text", [path for path in text if path not in text_bindings], CXX_FLAGS),
    ]
    objects = [Objects("cuda", sources("kernels/cuda/*.cu"), [*cuda.FLAGS, f"-I{SOURCES}"], nvcc=nvcc)] if nvcc else []
    kernels = {name: sources("kernels/cpu/*.cpp")[::-1] for name in sets}  # the last takes longest
    narrow = {instruction_sets.NARROW: instruction_sets.narrow_sources(SOURCES / "kernels")}
    for name, files in {**narrow, **kernels}.items():
        flags = [*CXX_FLAGS, *KERNEL_FLAGS, *instruction_sets.flags(name), *only, f"-DCHARLM_ISA={name}"]
        objects.append(Objects(name, files, flags))
    # clang has other rules for headers that are compiled beforehand, and takes less time to read them.
    header = "bindings/checks.h" if is_gcc else None
    objects.append(Objects("bindings", bindings, [*CXX_FLAGS, *BINDING_FLAGS, *only], header))
    objects.append(
        Objects("shared", sources("kernels/*.cpp"), [*CXX_FLAGS, "-O2", *only, *instruction_sets.emulation()])
    )
    return [
        module(Pybind11Extension("charlm._text", [], extra_link_args=SANITIZE_FLAGS), text_objects),
        module(
            CppExtension(
                "charlm._C",
                [],
                extra_link_args=[*SANITIZE_FLAGS, *(cuda.runtime(nvcc) if nvcc else [])],
                py_limited_api=True,
            ),
            objects,
        ),
    ]


# What does not compile needs nothing of that. The sources are those of MANIFEST.in, the same wherever they are packed.
if {"sdist", "egg_info", "dist_info"} & set(sys.argv):
    setup(**description.arguments())
else:
    setup(**description.arguments(), ext_modules=modules(), cmdclass={"build_ext": BuildModules})
