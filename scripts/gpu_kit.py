"""Prepares gpu-kit/: what a machine with a GPU, but without a compiler or a network, lacks to run the GPU benchmark.

    python -m scripts.gpu_kit --python python3.12 --packages liger-kernel cut-cross-entropy

gpu-kit/charlm/   the compiled modules: _C as it is built here, for every Python and torch; _text for one Python
gpu-kit/site/     the packages, without what they depend on
gpu-kit/run.sh    puts them into place and runs `python3 -m benchmarks.gpu`

Copy the sources and gpu-kit/ there, and run: bash gpu-kit/run.sh
The variable OUT, where it is set, is the folder of what that writes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from charlm import environment
from charlm.ops._extension import _C
from scripts import interpreters

ROOT = Path(__file__).resolve().parent.parent
RUN = """#!/usr/bin/env bash
# Runs the GPU benchmark of charlm at {commit} with the modules that were compiled for it elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
cp gpu-kit/charlm/*.so charlm/
export PYTHONPATH="$PWD:$PWD/gpu-kit/site${{PYTHONPATH:+:$PYTHONPATH}}"
exec python3 -m benchmarks.gpu --commit {commit} ${{OUT:+--out "$OUT"}} "$@"
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="of the version that the other machine has")
    parser.add_argument("--packages", nargs="*", default=[], help="to take along, for that Python")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-kit", help="folder, which is written anew")
    options = parser.parse_args(arguments)
    if _C.build_info()["cuda"] is None:
        sys.exit("charlm was built without kernels for GPUs: build it where nvcc is, CHARLM_CUDA=1 make setup")
    shutil.rmtree(options.out, ignore_errors=True)
    modules = options.out / "charlm"
    modules.mkdir(parents=True)
    shutil.copy(str(_C.__file__), modules)
    text = interpreters.compile_text(interpreters.ask(options.python), modules)
    if options.packages:
        pip = [options.python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
        subprocess.run([*pip, "--target", str(options.out / "site"), *options.packages], check=True)
    (options.out / "run.sh").write_text(RUN.format(commit=environment.commit()))
    print(
        f"{options.out}: {text.name} and {_C.__name__}, which need {' and '.join(needed_libraries(modules))} or newer"
    )
    print("copy it and the sources to the other machine, and run there: bash gpu-kit/run.sh")


def needed_libraries(folder: Path) -> list[str]:
    """The newest versions of the system's libraries that the modules ask for."""
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    newest: dict[str, list[int]] = {}
    for name, version in re.findall(rb"\b(GLIBC|GLIBCXX)_([0-9]+(?:\.[0-9]+)+)", content):
        numbers = [int(part) for part in version.split(b".")]
        newest[name.decode()] = max(newest.get(name.decode(), numbers), numbers)
    return [f"{name} {'.'.join(map(str, numbers))}" for name, numbers in sorted(newest.items())]


if __name__ == "__main__":
    main()
