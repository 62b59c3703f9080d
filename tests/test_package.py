"""The package as a whole: what is public, when it is imported, and what happens where the extension does not load."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

import charlm

ROOT = Path(__file__).resolve().parent.parent

_REPORT_TORCH = "print('torch' in sys.modules)"
# What a binary for another machine does at import.
_BREAK_EXTENSION = "import sys; sys.modules['charlm._C'] = None"
# What compiling for another Python leaves: its module has another name.
_BREAK_TEXT = "import sys; sys.modules['charlm._text'] = None"


def run_python(*lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


class Commands(NamedTuple):
    """What came of commands: of each its exit code, its output and its errors, and whether torch was imported then."""

    results: list[tuple[int, str, str]]
    had_torch: list[bool]


def run_commands(before: str, *commands: list[str]) -> Commands:
    """Runs commands one after the other in one new process, after a line of Python."""
    result = run_python(
        before,
        "import contextlib, io, json, sys",
        "from charlm.cli import main",
        "found = []",
        f"for arguments in {commands!r}:",
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:",
        "        code = main(arguments)",
        "    found.append((code, out.getvalue(), err.getvalue(), 'torch' in sys.modules))",
        "print(json.dumps(found))",
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    return Commands([(code, out, err) for code, out, err, _ in found], [had_torch for *_, had_torch in found])


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


def test_help_and_usage_errors_do_not_wait_for_torch() -> None:
    commands = [["--help"], ["train", "--help"], ["bench", "--help"], ["--version"], ["nothing"]]
    process = run_commands("import sys", *commands, ["info"])
    assert [code for code, _, _ in process.results] == [0, 0, 0, 0, 2, 0]
    assert process.had_torch == [False] * 5 + [True]


def test_commands_say_what_is_wrong_where_the_extension_does_not_load() -> None:
    info, sample = run_commands(_BREAK_EXTENSION, ["info", "--json"], ["sample", "run"]).results
    assert (info[0], sample[0]) == (2, 2)
    (line,) = info[2].splitlines()
    assert line.startswith("error: the compiled part of charlm does not load under torch ")
    assert line.endswith(f". Run: pip install --no-deps --editable {ROOT}")
    facts = json.loads(info[1])
    assert facts["versions"]["charlm"] == charlm.__version__
    assert f"error: {facts['error']}" == line
    (line,) = sample[2].splitlines()
    assert line.startswith("error: the compiled part of charlm does not load under torch ")


def test_an_error_inside_a_module_is_not_a_missing_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise AttributeError("an op that an older binary does not have")

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.delitem(vars(charlm), "plots", raising=False)
    with pytest.raises(ImportError, match=r"charlm\.plots cannot be imported: an op that"):
        _ = charlm.plots


def test_without_the_text_module_the_ops_work_and_commands_fail_in_one_line() -> None:
    use = "import torch; from charlm import nn, ops; loss = ops.cross_entropy(torch.zeros(1, 1), torch.tensor([0]))"
    others = [["train"], ["sample", "run"], ["eval", "run"], ["plot", "run"], ["export", "run", "--to", "c"], ["bench"]]
    info, *failures = run_commands(
        f"{_BREAK_TEXT}; {use}; assert loss.item() == 0.0", ["info", "--json"], *others
    ).results
    for code, _, errors in failures:
        assert code == 2
        (line,) = errors.splitlines()
        assert line.startswith(
            "error: charlm._text, which reads and samples text, does not load under Python "
            f"{platform.python_version()}, one version of which it is compiled for: "
        )
        assert line.endswith(f". Run: pip install --no-deps --editable {ROOT}")
    assert info[0] == 2
    facts = json.loads(info[1])
    assert facts["instruction_set"] in facts["instruction_sets"]
    assert f"error: {facts['error']}\n" == info[2]


def test_installed_charlm_says_where_to_run_what_compiles_it(tmp_path: Path) -> None:
    """Its sources are somewhere else, and charlm on an index is another project."""
    shutil.copytree(ROOT / "charlm", tmp_path / "site" / "charlm", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = f"{_BREAK_EXTENSION}; import charlm.ops"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    (line,) = result.stderr.splitlines()[-1:]
    assert line.startswith("ImportError: the compiled part of charlm does not load under torch ")
    assert line.endswith(". In the folder of charlm's sources, run: pip install --force-reinstall --no-deps .")


def test_warnings_of_torch_about_itself_are_no_errors() -> None:
    """Such as that of guards on Python 3.13.0."""
    warnings.warn_explicit("it may run slower", RuntimeWarning, "guards.py", 1, module="torch._dynamo.guards")
    warnings.warn_explicit("it may run slower", UserWarning, "__init__.py", 1, module="torch")
    with pytest.raises(RuntimeWarning):
        warnings.warn_explicit("it may run slower", RuntimeWarning, "ops.py", 1, module="charlm.ops")
    with pytest.raises(RuntimeWarning):
        warnings.warn_explicit("it may run slower", RuntimeWarning, "torch.py", 1, module="torchvision")
