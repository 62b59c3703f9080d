"""Makes what can be given away: the source distribution, and from it a wheel for each Python of this machine.

    python -m scripts.build_wheels --out dist

charlm._C serves every CPython from 3.10, and is compiled once; charlm._text is compiled for each. What is compiled for
the processor and for GPUs is as in any other build, setup.py says what. Wheels are for systems like this one: they need
its C library or a newer one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts import interpreters
from scripts.interpreters import ROOT, Interpreter


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder")
    parser.add_argument("--this-python", action="store_true", help="a wheel for the Python that runs this alone")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(build_sdist(out), out)
    print(wheel)
    own = interpreters.ask(sys.executable)
    for interpreter in [] if options.this_python else interpreters.find():
        if interpreter.version == own.version:
            continue
        if interpreter.has_headers:
            print(wheel_for(interpreter, wheel, out))
        else:
            print(f"none for {interpreter.path}, which has no {interpreter.include}/Python.h")


def build_sdist(out: Path) -> Path:
    script = f"from building import backend; print(backend.build_sdist({str(out)!r}))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return out / result.stdout.splitlines()[-1]


def build_wheel(sdist: Path, out: Path) -> Path:
    """The wheel for this Python, by what a user does."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--wheel-dir", folder, str(sdist)], check=True)
        (built,) = Path(folder).iterdir()
        return built.replace(out / built.name)


def wheel_for(interpreter: Interpreter, wheel: Path, out: Path) -> Path:
    """A wheel with charlm._text for another Python in the place of the one it has."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _wheel("unpack", "--dest", folder, wheel)
        (content,) = folder.iterdir()
        for compiled in (content / "charlm").glob("_text.*.so"):
            compiled.unlink()
        interpreters.compile_text(interpreter, content / "charlm")
        _wheel("pack", "--dest-dir", folder, content)
        _wheel("tags", "--remove", "--python-tag", interpreter.tag, "--abi-tag", interpreter.tag, folder / wheel.name)
        (built,) = folder.glob("*.whl")
        return built.replace(out / built.name)


def _wheel(*arguments: str | Path) -> None:
    """The command of the package wheel."""
    subprocess.run([sys.executable, "-m", "wheel", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
