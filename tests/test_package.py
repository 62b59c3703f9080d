"""The package as a whole: what is public, when it is imported, and what happens where the extension does not load."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import charlm

ROOT = Path(__file__).resolve().parent.parent

_REPORT_TORCH = "print('torch' in sys.modules)"
# What a binary for another machine does at import.
_BREAK_EXTENSION = "import sys; sys.modules['charlm._C'] = None"


def run_python(*lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_every_public_name_is_what_its_module_defines() -> None:
    for name in charlm.__all__:
        value = getattr(charlm, name)
        if name in charlm._HOMES:
            assert value is getattr(importlib.import_module(f"charlm.{charlm._HOMES[name]}"), name)
        elif name != "__version__":
            assert value is importlib.import_module(f"charlm.{name}")
    assert set(charlm.__all__) <= set(dir(charlm))
    assert charlm.nn.CrossEntropyLoss().reduction == "mean"


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'charlm' has no attribute 'transformer'"):
        _ = charlm.transformer  # type: ignore[attr-defined]


def test_import_does_not_wait_for_torch() -> None:
    result = run_python("import sys, charlm", "charlm.__version__, dir(charlm)", _REPORT_TORCH)
    assert result.stdout == "False\n", result.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["bench", "--help"], ["--version"], ["nothing"]]
)
def test_help_and_usage_errors_do_not_wait_for_torch(arguments: list[str]) -> None:
    result = run_python("import sys", "from charlm.cli import main", f"main({arguments})", _REPORT_TORCH)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_info_says_what_is_wrong_where_the_extension_does_not_load() -> None:
    command = ["from charlm.cli import main", "sys.exit(main(['info', '--json']))"]
    result = run_python(_BREAK_EXTENSION, *command)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: the compiled part of charlm does not load under torch ")
    assert ". Run: pip install " in line
    facts = json.loads(result.stdout)
    assert facts["versions"]["charlm"] == charlm.__version__
    assert f"error: {facts['error']}" == line


def test_an_error_inside_a_module_is_not_a_missing_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise AttributeError("an op that an older binary does not have")

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.delitem(vars(charlm), "plots", raising=False)
    with pytest.raises(ImportError, match=r"charlm\.plots cannot be imported: an op that"):
        _ = charlm.plots


def test_without_the_extension_other_commands_fail_in_one_line() -> None:
    result = run_python(_BREAK_EXTENSION, "from charlm.cli import main", "sys.exit(main(['sample', 'run']))")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: the compiled part of charlm does not load under torch ")
