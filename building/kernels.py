"""The command that compiles the kernels, into static libraries that the extension links."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from os.path import getmtime
from pathlib import Path
from typing import Any

from setuptools.command.build_clib import build_clib

Library = tuple[str, dict[str, Any]]

CUDA_BUILD = Path("build/cuda")


class BuildKernels(build_clib):
    """Compiles each library into its own folder (they share sources), all of them in parallel, when out of date."""

    def build_libraries(self, libraries: list[Library]) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.build_library, libraries))

    def build_library(self, library: Library) -> None:
        name, options = library
        output = Path(self.build_clib) / self.compiler.library_filename(name)
        if self.is_new(output, [*options["sources"], *options["depends"]]):
            return
        if "nvcc" in options:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(lambda source: self.compile_cuda(source, options), options["sources"]))
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

    def compile_cuda(self, source: str, options: dict[str, Any]) -> str:
        """Compiles for all architectures at once.

        What the assembler says of registers, and the PTX that it got, go beside the object, for
        scripts/cuda_resources.py. All outlive a build by pip, whose folder for objects is a temporary one: nothing else
        takes as long to compile.
        """
        output = CUDA_BUILD / f"{Path(source).stem}.o"
        if not self.is_new(output, [source, *options["depends"]]):
            kept = output.with_suffix("")
            kept.mkdir(parents=True, exist_ok=True)
            command = [*options["nvcc"], *options["cflags"], "--keep", "--keep-dir", str(kept)]
            command += [*(f"-I{folder}" for folder in options["include_dirs"]), "-c", source, "-o", str(output)]
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
        """Whether an output is newer than what it is made of, and than what says how."""
        newest = max(getmtime(path) for path in [*inputs, "setup.py", *map(str, Path("building").glob("*.py"))])
        return not self.force and output.exists() and output.stat().st_mtime > newest
