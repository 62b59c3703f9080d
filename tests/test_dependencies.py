"""charlm where nothing is installed but what it declares, as by the instructions of the README."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent

# As if these modules were not installed.
HIDE = """
import sys

class Others:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Others, sys.meta_path)
from charlm.cli import main
for arguments in commands:
    code = main(arguments)
    if code:
        sys.exit(code)
"""
COMMANDS = [
    ["train", "--steps", "3", "--out", "run"],
    ["train", "--steps", "6", "--resume", "run"],
    ["sample", "run", "-n", "2"],
    ["eval", "run"],
    ["export", "run", "--to", "c"],
    ["export", "run", "--to", "html"],
    ["sweep", "--steps", "2", "--seeds", "2", "--out", "sweep"],
    ["bench", "--backends", "eager,ops,fused", "--seconds", "0.001"],
    ["info"],
]


def declared() -> list[str]:
    line = re.search(r"^dependencies = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert line is not None
    return re.findall(r'"([^"]+)"', line[1])


def installed_by(requirements: list[str]) -> set[str]:
    """The distributions that pip installs for some requirements: theirs, and those of all that they require."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ["", *requirement.extras]:
            key = canonicalize_name(requirement.name), wanted
            if key not in seen:
                seen.add(key)
                waiting += [(Requirement(text), wanted) for text in metadata.requires(requirement.name) or []]
        found.add(canonicalize_name(requirement.name))
    return found


def run(folder: Path, hidden: set[str], commands: list[list[str]]) -> subprocess.CompletedProcess[str]:
    script = f"hidden = {hidden!r}\ncommands = {commands!r}\n{HIDE}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_every_command_works_with_what_is_declared_alone(tmp_path: Path) -> None:
    allowed = installed_by(declared())
    hidden = {
        module
        for module, distributions in metadata.packages_distributions().items()
        if module != "charlm" and not allowed & {canonicalize_name(name) for name in distributions}
    }
    assert {"pytest", "hypothesis", "matplotlib", "pybind11"} <= hidden
    assert not {"torch", "numpy", "safetensors", "typer", "rich"} & hidden
    result = run(tmp_path, hidden, COMMANDS)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()
