"""docs/toy_op.md: its blocks go into a copy of the sources, compile, and pass the tests that are among them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from charlm import _C

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^(Create|Add to) `([\w/.]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# One copy of the kernel is enough here, under the name of any instruction set.
COMPILER = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden"]
COMPILER += [f"-DCHARLM_ISA={_C.instruction_set()}", f"-DCHARLM_ONLY_ISA={_C.instruction_set()}"]
COMPILER += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]

# The rest of the bindings is in charlm._C, which is loaded as it is: the toy has a library of its own.
LIBRARY = """
#include <torch/csrc/stable/library.h>
STABLE_TORCH_LIBRARY_FRAGMENT(charlm, ops) {{
{schemas}}}
"""
# At the root of the copy; that of the tests goes with them.
CONFTEST = """
import torch

torch.ops.load_library({library!r})
"""


def blocks() -> list[tuple[str, str, str]]:
    """What to do with which file, and the block itself."""
    found = BLOCK.findall((ROOT / "docs" / "toy_op.md").read_text())
    assert len(found) == (ROOT / "docs" / "toy_op.md").read_text().count("```") // 2
    return found


def test_only_files_that_exist_are_added_to() -> None:
    for action, name, _ in blocks():
        assert (ROOT / name).exists() == (action == "Add to"), name


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the blocks need, with the blocks in it."""
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("charlm", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    for name in ("tests", "benchmarks"):
        (tmp_path / name).mkdir()
    for path in (ROOT / "pyproject.toml", *(ROOT / "tests").glob("[a-s]*.py"), *(ROOT / "benchmarks").glob("*.py")):
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    for _, name, text in blocks():
        with (tmp_path / name).open("a") as file:
            file.write(f"\n\n{text}" if name != "csrc/bindings/schemas.cpp" else "")
    return tmp_path


def compile_toy(tree: Path) -> Path:
    """The library of the toy: its binding with those that this includes, and its kernel."""
    (schemas,) = (text for _, name, text in blocks() if name == "csrc/bindings/schemas.cpp")
    assert "STABLE_TORCH_LIBRARY(charlm, ops) {" in (ROOT / "csrc/bindings/schemas.cpp").read_text()
    csrc = tree / "csrc"
    (tree / "toy.cpp").write_text(
        "".join(f'#include "{path.relative_to(csrc)}"\n' for path in needed(csrc, csrc / "bindings/scale.cpp"))
        + LIBRARY.format(schemas=schemas)
    )
    sources = [str(tree / "toy.cpp"), str(csrc / "kernels/cpu/scale.cpp")]
    includes = [f"-I{path}" for path in (csrc, *cpp_extension.include_paths())]
    libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
    run([*COMPILER, *includes, "-shared", *sources, *libraries, "-o", "toy.so"], tree)
    return tree / "toy.so"


def needed(csrc: Path, source: Path) -> list[Path]:
    """A source, and those that define what its headers declare: of the same name, of kernels or of bindings."""
    found, waiting = [], [source]
    while waiting:
        path = waiting.pop()
        found.append(path)
        for header in re.findall(r'^#include "(?:bindings|kernels)/(\w+)\.h"', path.read_text(), re.MULTILINE):
            others = [csrc / folder / f"{header}.{end}" for folder in ("bindings", "kernels") for end in ("h", "cpp")]
            waiting += [other for other in others if other.exists() and other not in (*found, *waiting)]
    return [path for path in found if path.suffix == ".cpp"]


def run(command: list[str], folder: Path) -> None:
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_toy_op_compiles_and_passes_its_tests(tree: Path) -> None:
    library = compile_toy(tree)
    (tree / "conftest.py").write_text(CONFTEST.format(library=str(library)))
    tests = ["tests/test_scale.py", "benchmarks/bench_ops.py", "--benchmark-disable", "-k", "scale and not compile"]
    run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], tree)
