"""What a build needs, looked for before anything is compiled: what lacks is named, and how to install it.

Importable where nothing is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import warnings
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from charlm._version import OLDEST_TORCH

# The packages that build; torch, which must be the one that will import the result, is not among them.
TOOLS = ["setuptools>=77", "pybind11>=2.13", "ninja"]

_OLDEST_TORCH = ".".join(map(str, OLDEST_TORCH))
_REQUIREMENTS = " ".join(shlex.quote(requirement) for requirement in [f"torch>={_OLDEST_TORCH}", *TOOLS])
# Works whatever is missing, and whatever is installed already.
_INSTALL = f"pip install {_REQUIREMENTS} && pip install --no-build-isolation ."


def check_tools() -> None:
    """Stops where a package that builds is missing."""
    # ninja is a command, which is not on the PATH where an environment is used but not activated.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    missing = [tool for tool in TOOLS if not _is_installed(*tool.partition(">=")[::2])]
    if missing:
        _stop(f"what builds charlm is not installed in {sys.prefix}: {', '.join(missing)}", _INSTALL)


def check_torch() -> None:
    """Stops where there is no torch to compile against, or one that is too old.

    pip hides what is installed from a build that it isolates; but charlm is to be compiled against the torch that will
    import it, which is the installed one. So it is looked for there too, and what else is there comes last.
    """
    if importlib.util.find_spec("torch") is None:
        sys.path += [folder for folder in _installed() if folder not in sys.path]
    if importlib.util.find_spec("torch") is None:
        _stop(
            f"charlm compiles against the torch that will import it, and sees none in {sys.prefix}: it is not "
            "installed, or hidden by what runs this build",
            _INSTALL,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that NumPy is not there, which no build takes
            from torch import __version__ as version
    except ImportError as error:
        _stop(
            f"charlm compiles against torch, and that in {sys.prefix} does not import: {error}",
            f"pip install --force-reinstall 'torch>={_OLDEST_TORCH}'",
        )
    if _numbers(version) < OLDEST_TORCH:
        _stop(f"charlm needs torch >= {_OLDEST_TORCH}, found torch {version}", f"pip install 'torch>={_OLDEST_TORCH}'")


def check_compiler() -> str:
    """Stops where Python's headers or a compiler for C++20 are missing; which compiler it is, "gcc" or "clang"."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        _stop_for_system(f"charlm compiles against Python's headers, and there is no {header}", package)
    # setuptools and torch have defaults that differ.
    os.environ["CXX"] = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "g++")
    compiler = shlex.split(os.environ["CXX"])
    if shutil.which(compiler[0]) is None:
        _stop_for_system(f"charlm needs a compiler for C++20, and there is no {compiler[0]}", "g++")
    probe = "#include <concepts>\n#ifdef __clang__\nusing compiler = clang;\n#endif\n"
    command = [*compiler, "-std=c++20", "-E", "-x", "c++", "-"]
    result = subprocess.run(command, input=probe, capture_output=True, text=True)
    if result.returncode != 0:
        said = next(iter(result.stderr.splitlines()), f"exit code {result.returncode}")
        _stop_for_system(f"charlm needs a compiler for C++20, and {os.environ['CXX']} is none: {said}", "g++")
    return "clang" if "using compiler = clang;" in result.stdout else "gcc"


def _is_installed(package: str, oldest: str) -> bool:
    try:
        return _numbers(metadata.version(package)) >= _numbers(oldest)
    except metadata.PackageNotFoundError:
        return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _installed() -> list[str]:
    """The folders that hold the packages of this interpreter."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if sys.prefix == sys.base_prefix:  # a virtual environment does not look there
        folders.append(site.getusersitepackages())
    return list(dict.fromkeys(folders))


def _stop_for_system(problem: str, package: str) -> NoReturn:
    """With an example of how to install a package of the operating system, as systems differ."""
    if sys.platform == "darwin":
        _stop(problem, "xcode-select --install")
    _stop(problem, f"apt install {package}", "on Debian and Ubuntu")


def _stop(problem: str, command: str, where: str = "") -> NoReturn:
    sys.exit(f"{problem}. {f'Run, {where}' if where else 'Run'}:\n  {command}")
