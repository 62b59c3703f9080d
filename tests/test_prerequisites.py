"""What a build says where something that it needs is missing, before anything is downloaded or compiled."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from building import prerequisites

ROOT = Path(__file__).resolve().parent.parent
INSTALL = (
    "Run:\n  pip install 'torch>=2.10' 'setuptools>=77' 'pybind11>=2.13' ninja && pip install --no-build-isolation ."
)
ASK = "from building import backend; print(backend.get_requires_for_build_wheel())"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python without any packages: a fresh environment, or what a build that is isolated from all others sees."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


def run(python: str, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What pip does, in the folder of the sources."""
    environment = {**os.environ, "PYTHONPATH": "", **environment}
    return subprocess.run([python, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)


def a_torch(folder: Path, content: str) -> str:
    """The folder, with a torch in it."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(content)
    return str(folder)


def a_compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def said(stop: pytest.ExceptionInfo[SystemExit]) -> str:
    assert isinstance(stop.value.code, str)
    return stop.value.code


def test_an_isolated_build_finds_the_torch_that_is_installed() -> None:
    """pip takes the folders of installed packages off the path."""
    hide = "import sys; sys.path = [folder for folder in sys.path if not folder.endswith('-packages')]; "
    result = run(sys.executable, hide + "import importlib.util as u; assert u.find_spec('torch') is None; " + ASK)
    assert result.stdout == f"{prerequisites.TOOLS}\n", result.stderr


def test_without_torch_a_build_asks_for_nothing(bare: str) -> None:
    result = run(bare, ASK)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"charlm compiles against the torch that will import it, and sees none in {Path(bare).parents[1]}: it is not "
        f"installed, or hidden by what runs this build. {INSTALL}\n"
    )


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable", "prepare_metadata_for_build_wheel"])
def test_without_isolation_what_builds_must_be_installed(hook: str, bare: str, tmp_path: Path) -> None:
    """As in a fresh environment of Python 3.12, which has no setuptools."""
    result = run(bare, f"from building import backend; backend.{hook}({str(tmp_path)!r})")
    assert result.returncode == 1
    assert result.stderr == (
        f"what builds charlm is not installed in {Path(bare).parents[1]}: setuptools>=77, pybind11>=2.13, ninja. "
        f"{INSTALL}\n"
    )


def test_tools_that_are_too_old_are_as_good_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"setuptools": "65.5.0", "pybind11": "2.13.6", "ninja": "1.11.1.3"}
    monkeypatch.setattr(prerequisites.metadata, "version", versions.get)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    with pytest.raises(SystemExit) as stop:
        prerequisites.check_tools()
    assert said(stop).startswith(f"what builds charlm is not installed in {sys.prefix}: setuptools>=77. ")


def test_the_command_that_is_shown_can_be_pasted() -> None:
    command = INSTALL.partition("\n")[2]
    first, second = (shlex.split(part) for part in command.split("&&"))
    assert first == ["pip", "install", "torch>=2.10", *prerequisites.TOOLS]
    assert second == ["pip", "install", "--no-build-isolation", "."]


@pytest.mark.parametrize("version", ["2.9.1", "2.9.1+cpu", "1.13.0a0+git0123"])
def test_a_torch_that_is_too_old(version: str, bare: str, tmp_path: Path) -> None:
    result = run(bare, ASK, PYTHONPATH=a_torch(tmp_path, f"__version__ = {version!r}"))
    assert result.returncode == 1
    assert result.stderr == f"charlm needs torch >= 2.10, found torch {version}. Run:\n  pip install 'torch>=2.10'\n"


def test_a_torch_that_does_not_import(bare: str, tmp_path: Path) -> None:
    result = run(bare, ASK, PYTHONPATH=a_torch(tmp_path, "raise ImportError('libtorch.so: no such file')"))
    assert result.returncode == 1
    (sentence, command) = result.stderr.splitlines()
    assert re.fullmatch(r"charlm compiles against torch, and that in .* does not import: libtorch.*\. Run:", sentence)
    assert command == "  pip install --force-reinstall 'torch>=2.10'"


def test_newer_torches_will_do(bare: str, tmp_path: Path) -> None:
    result = run(bare, ASK, PYTHONPATH=a_torch(tmp_path, "__version__ = '3.0.0.dev20270101'"))
    assert result.returncode == 0, result.stderr


def test_no_compiler(bare: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = a_torch(tmp_path, "__version__ = '2.13.0'")
    result = run(bare, ASK, PYTHONPATH=path, PATH=str(tmp_path / "empty"), CXX="")
    assert result.returncode == 1
    if sys.platform == "linux":
        assert result.stderr == (
            "charlm needs a compiler for C++20, and there is no g++. Run, on Debian and Ubuntu:\n  apt install g++\n"
        )


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "ccache-of-old g++")
    with pytest.raises(SystemExit) as stop:
        prerequisites.check_compiler()
    assert said(stop).startswith("charlm needs a compiler for C++20, and there is no ccache-of-old. Run")


def test_a_compiler_that_is_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    complaint = "g++-7: error: unrecognized command line option '-std=c++20'"
    monkeypatch.setenv("CXX", a_compiler(tmp_path / "g++-7", f'echo "{complaint}" >&2; exit 1'))
    with pytest.raises(SystemExit) as stop:
        prerequisites.check_compiler()
    assert f"charlm needs a compiler for C++20, and {tmp_path}/g++-7 is none: {complaint}. Run" in said(stop)


def test_no_headers_of_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SystemExit) as stop:
        prerequisites.check_compiler()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert said(stop) == (
        f"charlm compiles against Python's headers, and there is no {tmp_path}/Python.h. Run, on Debian and Ubuntu:\n"
        f"  apt install python{version}-dev"
    )


def test_what_macos_lacks_is_installed_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("CXX", "no-compiler")
    with pytest.raises(SystemExit) as stop:
        prerequisites.check_compiler()
    assert said(stop).endswith("there is no no-compiler. Run:\n  xcode-select --install")


@pytest.mark.parametrize(("definition", "name"), [("-D__clang__=1", "clang"), ("-U__clang__", "gcc")])
def test_compilers_are_told_apart(definition: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """clang does not know all the warnings of GCC."""
    monkeypatch.setenv("CXX", a_compiler(tmp_path / "compiler", f'exec c++ {definition} "$@"'))
    assert prerequisites.check_compiler() == name


def test_setup_stops_before_it_compiles(bare: str, tmp_path: Path) -> None:
    """Whoever calls it: here without pip."""
    path = f"{a_torch(tmp_path, '')}{os.pathsep}{sysconfig.get_path('purelib')}"
    (tmp_path / "torch" / "__init__.py").write_text("__version__ = '2.9.1'")
    environment = {**os.environ, "PYTHONPATH": path}
    command = [bare, "setup.py", "build_ext", "--build-lib", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "charlm needs torch >= 2.10, found torch 2.9.1. Run:\n  pip install 'torch>=2.10'\n"
    assert not (tmp_path / "out").exists()
