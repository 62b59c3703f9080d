"""Builds the two extension modules; everything declarative is in pyproject.toml.

``charlm._C``     kernels and op bindings: libtorch stable ABI + abi3, one binary for every torch >= 2.10.
``charlm._text``  pybind11: text to tokens, the context index; includes no torch header.

The CPU kernels are compiled once per instruction set into static libraries, and one set is picked at run time.
Sources are globbed: adding an op never edits this file.
"""

import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from os import cpu_count
from os.path import getmtime
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_clib import build_clib

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "charlm compiles against the torch that will import it, and this environment has none. Run:\n"
        "  pip install torch\n"
        "  pip install --no-build-isolation ."
    )

# The oldest libtorch whose stable ABI the bindings may call: 2.10.
TORCH_TARGET_VERSION = "0x020a000000000000"

# -g0: Python's own flags ask for debug information, which doubles the build time.
CXX_FLAGS = ["-std=c++20", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]
# Contraction lets a * b + c be one instruction. GCC 12 warns of its own AVX-512 intrinsics (GCC bug 105593).
KERNEL_FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# The torch headers leave parameters unused.
BINDING_FLAGS = ["-O2", "-Wno-unused-parameter", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]

INSTRUCTION_SETS = (
    {"x86_64": ["-march=x86-64"], "x86_64_v3": ["-march=x86-64-v3"], "x86_64_v4": ["-march=x86-64-v4"]}
    if platform.machine() in ("x86_64", "AMD64")
    else {"generic": []}
)
# Absolute: ninja compiles from the build folder.
INCLUDE = str(Path(__file__).parent.resolve() / "csrc")
HEADERS = sorted(glob("csrc/**/*.h", recursive=True))
KERNELS = sorted(glob("csrc/kernels/cpu/*.cpp"))


class BuildKernels(build_clib):
    """Compiles each library into its own folder (they share sources), all of them in parallel, when out of date."""

    def build_libraries(self, libraries: list[tuple[str, dict[str, list[str]]]]) -> None:
        with ThreadPoolExecutor(cpu_count()) as pool:
            list(pool.map(self.build_library, libraries))

    def build_library(self, library: tuple[str, dict[str, list[str]]]) -> None:
        name, options = library
        output = Path(self.build_clib) / self.compiler.library_filename(name)
        inputs = [*options["sources"], *HEADERS, __file__]
        if not self.force and output.exists() and output.stat().st_mtime > max(getmtime(path) for path in inputs):
            return
        objects = self.compiler.compile(
            options["sources"],
            output_dir=str(Path(self.build_temp) / name),
            macros=options["macros"],
            include_dirs=options["include_dirs"],
            extra_postargs=options["cflags"],
        )
        output.unlink(missing_ok=True)  # an archive keeps the members of sources that no longer exist
        self.compiler.create_static_lib(objects, name, output_dir=self.build_clib)


def kernel_library(name: str, flags: list[str]) -> tuple[str, dict[str, object]]:
    """The CPU kernels compiled for one instruction set, inside namespace charlm::cpu::isa_<name>."""
    return (
        f"charlm_kernels_{name}",
        {
            "sources": KERNELS,
            "include_dirs": [INCLUDE],
            "macros": [("CHARLM_ISA", name)],
            "cflags": [*CXX_FLAGS, *KERNEL_FLAGS, *flags],
        },
    )


setup(
    libraries=[kernel_library(name, flags) for name, flags in INSTRUCTION_SETS.items()],
    ext_modules=[
        CppExtension(
            "charlm._C",
            sorted(glob("csrc/bindings/*.cpp")) + sorted(glob("csrc/kernels/*.cpp")),
            include_dirs=[INCLUDE],
            depends=HEADERS + KERNELS,  # the libraries it links
            extra_compile_args={"cxx": [*CXX_FLAGS, *BINDING_FLAGS]},
            py_limited_api=True,
        ),
        Pybind11Extension("charlm._text", sorted(glob("csrc/text/*.cpp")), cxx_std=20, depends=HEADERS),
    ],
    cmdclass={"build_clib": BuildKernels, "build_ext": BuildExtension.with_options(use_ninja=True)},
)
