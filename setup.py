"""Builds the two extension modules; everything declarative is in pyproject.toml.

``charlm._C``     kernels and op bindings: libtorch stable ABI + abi3, one binary for every torch >= 2.10.
``charlm._text``  pybind11: text to tokens, the context index; includes no torch header.

The CPU kernels are compiled once per instruction set into static libraries, and one set is picked at run time. Where
there is nvcc, the CUDA kernels become one more, for whatever torch is installed; CHARLM_CUDA=0 leaves them out, and
CHARLM_CUDA=1 insists on them. Sources are globbed: adding an op never edits this file.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
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
CUDA_BUILD = Path("build/cuda")

# A100, H100 and H200, B200; other and later GPUs compile the intermediate code of the last one when they load it.
CUDA_ARCHITECTURES = ("80", "90", "100")
CUDA_FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", "--threads=0"]


def find_nvcc() -> list[str]:
    """The command that is CUDA's compiler, `$NVCC` or nvcc; empty where kernels for GPUs are not to be built."""
    wanted = os.environ.get("CHARLM_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        sys.exit(f"CHARLM_CUDA must be 0, 1 or auto, got {wanted!r}")
    nvcc = shlex.split(os.environ.get("NVCC", "nvcc"))
    if wanted == "0":
        return []
    if shutil.which(nvcc[0]) is None:
        if wanted == "1":
            sys.exit(
                f"CHARLM_CUDA=1 asks for kernels for GPUs, but there is no {nvcc[0]}. Install CUDA (12.8 or newer) "
                "and put its nvcc on the PATH or into NVCC; or build without them: CHARLM_CUDA=0"
            )
        return []
    return nvcc


def cuda_toolkit(nvcc: list[str]) -> Path:
    """Where the toolkit of an nvcc is, which may be a link or a script somewhere else."""
    plan = subprocess.run([*nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", plan, re.MULTILINE)
    if top is None:
        sys.exit(f"{shlex.join(nvcc)} does not say where its toolkit is:\n{plan}")
    return Path(top[1]).resolve()


NVCC = find_nvcc()
CUDA_TARGETS = [f"sm_{number}" for number in CUDA_ARCHITECTURES] + [f"compute_{CUDA_ARCHITECTURES[-1]}"]


class BuildKernels(build_clib):
    """Compiles each library into its own folder (they share sources), all of them in parallel, when out of date."""

    def build_libraries(self, libraries: list[tuple[str, dict[str, list[str]]]]) -> None:
        with ThreadPoolExecutor(cpu_count()) as pool:
            list(pool.map(self.build_library, libraries))

    def build_library(self, library: tuple[str, dict[str, list[str]]]) -> None:
        name, options = library
        output = Path(self.build_clib) / self.compiler.library_filename(name)
        if self.is_new(output, [*options["sources"], *HEADERS, *CUDA_HEADERS]):
            return
        if name == "charlm_kernels_cuda":
            with ThreadPoolExecutor(cpu_count()) as pool:
                objects = list(pool.map(self.compile_cuda, options["sources"]))
        else:
            objects = self.compiler.compile(
                options["sources"],
                output_dir=str(Path(self.build_temp) / name),
                macros=options["macros"],
                include_dirs=options["include_dirs"],
                extra_postargs=options["cflags"],
            )
        output.unlink(missing_ok=True)  # an archive keeps the members of sources that no longer exist
        self.compiler.create_static_lib(objects, name, output_dir=self.build_clib)

    def compile_cuda(self, source: str) -> str:
        """Compiles for all architectures at once.

        What the assembler says of registers, and the PTX that it got, go beside the object, for
        scripts/cuda_resources.py. All outlive a build by pip, whose folder for objects is a temporary one: nothing else
        takes as long to compile.
        """
        output = CUDA_BUILD / f"{Path(source).stem}.o"
        if not self.is_new(output, [source, *HEADERS, *CUDA_HEADERS]):
            kept = output.with_suffix("")
            kept.mkdir(parents=True, exist_ok=True)
            targets = [f"-gencode=arch=compute_{target.split('_')[1]},code={target}" for target in CUDA_TARGETS]
            flags = [*CUDA_FLAGS, "--keep", "--keep-dir", str(kept), f"-I{INCLUDE}"]
            command = [*NVCC, *flags, *targets, "-c", source, "-o", str(output)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode != 0:
                output.unlink(missing_ok=True)
                sys.exit(f"{shlex.join(command)}\n{result.stdout}{result.stderr}")
            output.with_suffix(".ptxas").write_text(result.stderr)
            for path in kept.iterdir():
                if path.suffix != ".ptx":
                    path.unlink()
        return str(output)

    def is_new(self, output: Path, inputs: list[str]) -> bool:
        newest = max(getmtime(path) for path in [*inputs, __file__])
        return not self.force and output.exists() and output.stat().st_mtime > newest


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


def cuda_runtime() -> list[str]:
    """What links the kernels for GPUs: a runtime of their own, so that the same binary loads where torch has none."""
    toolkit = cuda_toolkit(NVCC)
    found = [path for folder in ("lib64", "lib") for path in sorted(toolkit.glob(f"{folder}/libcudart_static.a"))]
    if not found:
        sys.exit(f"the CUDA toolkit in {toolkit} lacks libcudart_static.a: install it, or set CHARLM_CUDA=0")
    return [str(found[0]), "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL"]


libraries = [kernel_library(name, flags) for name, flags in INSTRUCTION_SETS.items()]
bindings = sorted(glob("csrc/bindings/*.cpp"))
if NVCC:
    libraries.append(("charlm_kernels_cuda", {"sources": CUDA_KERNELS}))
    bindings.remove("csrc/bindings/without_cuda.cpp")
    bindings += sorted(glob("csrc/bindings/cuda/*.cpp"))
    BINDING_FLAGS.append(f'-DCHARLM_CUDA_ARCHITECTURES="{" ".join(CUDA_TARGETS)}"')

setup(
    libraries=libraries,
    ext_modules=[
        CppExtension(
            "charlm._C",
            bindings + sorted(glob("csrc/kernels/*.cpp")),
            include_dirs=[INCLUDE],
            depends=HEADERS + KERNELS + CUDA_HEADERS + CUDA_KERNELS,  # the libraries it links
            extra_compile_args={"cxx": [*CXX_FLAGS, *BINDING_FLAGS]},
            extra_link_args=[*SANITIZE_FLAGS, *(cuda_runtime() if NVCC else [])],
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
    cmdclass={"build_clib": BuildKernels, "build_ext": BuildExtension.with_options(use_ninja=True)},
)
