"""The Pythons of this machine, and charlm._text for each of them: pybind11 compiles for one version at a time."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)

_QUESTION = """
import json, platform, sys, sysconfig
print(json.dumps({
    "implementation": platform.python_implementation(),
    "version": sys.version_info[:2],
    "include": sysconfig.get_path("include"),
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
    "has_gil": not sysconfig.get_config_var("Py_GIL_DISABLED"),
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """What compiling for a Python takes."""

    path: str
    implementation: str
    version: tuple[int, int]
    include: Path
    suffix: str
    has_gil: bool

    @property
    def is_served(self) -> bool:
        """Whether charlm._C, which is compiled once for all, loads there."""
        return self.implementation == "CPython" and self.has_gil and self.version >= OLDEST

    @property
    def has_headers(self) -> bool:
        return (self.include / "Python.h").is_file()

    @property
    def tag(self) -> str:
        """As in the name of a wheel: cp312."""
        return f"cp{self.version[0]}{self.version[1]}"


def ask(path: str) -> Interpreter:
    """What an interpreter says of itself; an error where it does not run."""
    answer = subprocess.run([path, "-c", _QUESTION], capture_output=True, text=True, check=True)
    facts = json.loads(answer.stdout)
    return Interpreter(
        path, **facts | {"version": (facts["version"][0], facts["version"][1]), "include": Path(facts["include"])}
    )


def find() -> list[Interpreter]:
    """One of each version that charlm can be built for: this one, those on the PATH, and those of pyenv and uv."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += (Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions").glob("*/bin")
    folders += (Path.home() / ".local/share/uv/python").glob("*/bin")
    paths = [path for folder in folders for path in sorted(folder.glob("python3.[1-9][0-9]"))]
    found: dict[tuple[int, int], Interpreter] = {}
    for path in [sys.executable, *map(str, paths)]:
        try:
            interpreter = ask(path)
        except (OSError, subprocess.CalledProcessError):
            continue  # such as a shim for a version that is not chosen
        known = found.get(interpreter.version)
        if interpreter.is_served and (known is None or interpreter.has_headers > known.has_headers):
            found[interpreter.version] = interpreter
    return [found[version] for version in sorted(found)]


def compile_text(interpreter: Interpreter, folder: Path) -> Path:
    """Compiles charlm._text into a folder; takes the interpreter's headers, and pybind11 here."""
    import pybind11

    output = folder / f"_text{interpreter.suffix}"
    compiler = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++20", "-O3", "-DNDEBUG", "-shared", "-fPIC"]
    compiler += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    compiler += ["-fvisibility=hidden", f"-I{interpreter.include}", f"-I{pybind11.get_include()}", f"-I{ROOT / 'csrc'}"]
    sources = map(str, sorted((ROOT / "csrc" / "text").glob("*.cpp")))
    subprocess.run([*compiler, *sources, "-o", str(output)], check=True)
    return output
