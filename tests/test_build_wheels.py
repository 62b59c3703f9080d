"""scripts/build_wheels.py: which Pythons get a wheel, and what is in it. Continuous integration makes real ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts import build_wheels, interpreters
from scripts.interpreters import Interpreter

TAG = interpreters.ask(sys.executable).tag


def a_python(folder: Path, name: str, version: tuple[int, int], headers: bool = True, **facts: object) -> Path:
    """A program that says of itself what an interpreter would."""
    folder.mkdir(exist_ok=True)
    include = folder / f"include-{name}"
    include.mkdir()
    if headers:
        (include / "Python.h").touch()
    said = {
        "implementation": "CPython",
        "version": version,
        "include": str(include),
        "suffix": f".cpython-{version[0]}{version[1]}-x86_64-linux-gnu.so",
        "has_gil": True,
    }
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{json.dumps(said | facts)}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with no other Python than this one."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def other_versions(*versions: tuple[int, int]) -> list[tuple[int, int]]:
    return sorted({*versions, (sys.version_info.major, sys.version_info.minor)})


def test_every_version_is_found_once_and_with_headers_if_any_has_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = home / "first", home / "second"
    a_python(first, "python3.12", (3, 12), headers=False)
    a_python(second, "python3.12", (3, 12))
    a_python(first, "python3.77", (3, 77))
    pyenv, uv = home / "home/.pyenv/versions/3.78.1/bin", home / "home/.local/share/uv/python/cpython-3.79/bin"
    for folder in (pyenv, uv):
        folder.parent.mkdir(parents=True)
    a_python(pyenv, "python3.78", (3, 78))
    a_python(uv, "python3.79", (3, 79), headers=False)
    monkeypatch.setenv("PATH", f"{first}:{second}:/no/such/folder")
    found = {interpreter.version: interpreter for interpreter in interpreters.find()}
    assert sorted(found) == other_versions((3, 12), (3, 77), (3, 78), (3, 79))
    if sys.version_info[:2] != (3, 12):
        assert found[3, 12].path == str(second / "python3.12")
    assert not found[3, 79].has_headers
    assert found[3, 78].tag == "cp378"


def test_pythons_that_the_binary_does_not_serve_are_left_out(home: Path) -> None:
    folder = home / "bin"
    a_python(folder, "python3.80", (3, 80), has_gil=False)
    a_python(folder, "python3.81", (3, 81), implementation="PyPy")
    a_python(folder, "python3.82", (3, 9))
    (folder / "python3.83").write_text("#!/nowhere/python\n")
    (folder / "python3.83").chmod(0o755)
    (folder / "python3.84").write_text("#!/bin/sh\necho 'pyenv: command not found' >&2; exit 127\n")
    (folder / "python3.84").chmod(0o755)
    assert [interpreter.version for interpreter in interpreters.find()] == other_versions()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel for this Python."""
    content = tmp_path / "content"
    metadata = content / "charlm_ops-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (content / "charlm").mkdir()
    (content / "charlm" / "_C.abi3.so").write_bytes(b"for all")
    (content / "charlm" / "_text.cpython-300-x86_64-linux-gnu.so").write_bytes(b"for one")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: charlm-ops\nVersion: 0.1.0\n")
    (metadata / "WHEEL").write_text(f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {TAG}-{TAG}-linux_x86_64\n")
    build_wheels._wheel("pack", "--dest-dir", tmp_path, content)
    return tmp_path / f"charlm_ops-0.1.0-{TAG}-{TAG}-linux_x86_64.whl"


def compile_nothing(interpreter: Interpreter, folder: Path) -> Path:
    output = folder / f"_text{interpreter.suffix}"
    output.write_text(f"for {interpreter.tag}")
    return output


def test_a_wheel_for_another_python_differs_by_the_text_module_alone(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "compile_text", compile_nothing)
    other = interpreters.ask(str(a_python(tmp_path / "bin", "python3.77", (3, 77))))
    before = wheel.read_bytes()
    built = build_wheels.wheel_for(other, wheel, tmp_path)
    assert built == tmp_path / "charlm_ops-0.1.0-cp377-cp377-linux_x86_64.whl"
    assert wheel.read_bytes() == before
    with zipfile.ZipFile(built) as archive:
        assert {name for name in archive.namelist() if name.startswith("charlm/")} == {
            "charlm/_C.abi3.so",
            "charlm/_text.cpython-377-x86_64-linux-gnu.so",
        }
        assert archive.read("charlm/_C.abi3.so") == b"for all"
        assert archive.read("charlm/_text.cpython-377-x86_64-linux-gnu.so") == b"for cp377"
        assert b"\nTag: cp377-cp377-linux_x86_64\n" in archive.read("charlm_ops-0.1.0.dist-info/WHEEL")
    build_wheels._wheel("unpack", "--dest", tmp_path / "again", built)  # which compares the hashes


def test_one_command_makes_all_of_them(
    wheel: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interpreters, "compile_text", compile_nothing)
    monkeypatch.setattr(build_wheels, "build_sdist", lambda out: out / "charlm_ops-0.1.0.tar.gz")
    monkeypatch.setattr(build_wheels, "build_wheel", lambda sdist, out: wheel.replace(out / wheel.name))
    a_python(home / "bin", "python3.77", (3, 77))
    without = a_python(home / "bin", "python3.78", (3, 78), headers=False)
    names = [f"charlm_ops-0.1.0-{tag}-{tag}-linux_x86_64.whl" for tag in (TAG, "cp377")]
    copy = shutil.copy(wheel, home / "copy.whl")
    build_wheels.main(["--this-python", "--out", str(home / "own")])
    assert capsys.readouterr().out.splitlines() == [str(home / "own" / names[0])]
    shutil.move(copy, wheel)
    build_wheels.main(["--out", str(home / "dist")])
    assert capsys.readouterr().out.splitlines() == [
        *(str(home / "dist" / name) for name in names),
        f"none for {without}, which has no {home}/bin/include-python3.78/Python.h",
    ]
    assert sorted(path.name for path in (home / "dist").iterdir()) == sorted(names)


def test_the_text_module_is_compiled_against_the_headers_of_its_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: ran.append(command))
    other = Interpreter("python3.77", "CPython", (3, 77), tmp_path / "include", ".cpython-377.so", True)
    assert interpreters.compile_text(other, tmp_path) == tmp_path / "_text.cpython-377.so"
    (command,) = ran
    assert f"-I{tmp_path}/include" in command
    assert command[-2:] == ["-o", str(tmp_path / "_text.cpython-377.so")]
