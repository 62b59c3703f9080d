"""What `charlm` says of itself: what to do first, help in groups that fits, and examples that work."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import CommandLine, shorter

import charlm
from charlm.cli.commands import COMMANDS, app

PROGRAM: Any = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have asked for colours, or for a width."""
    for variable in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(variable, raising=False)


def panels(text: str) -> dict[str, str]:
    """The boxes of a help, by title."""
    return dict(re.findall(r"^╭─ ([\w ]+?) ─+╮\n(.*?)^╰", text, re.MULTILINE | re.DOTALL))


def flags(parameter: Any) -> list[str]:
    """What the help calls an option; an argument by its name in capitals."""
    return [*parameter.opts, *parameter.secondary_opts] if parameter.opts[0].startswith("-") else [parameter.metavar]


def test_charlm_alone_says_what_to_do_first(run_charlm: CommandLine) -> None:
    lines = run_charlm.output().splitlines()
    assert lines[0] == f"charlm {charlm.__version__}: character-level language models"
    first, *_, last = (line.split("  ")[1] for line in lines if line.startswith("  charlm "))
    assert (first, last) == ("charlm train", "charlm train words.txt")
    assert lines[-1] == "All commands: charlm --help; one of them: charlm train --help"


@pytest.mark.parametrize(
    ("on_path", "called", "expected"),
    [
        (True, "/env/bin/charlm", "charlm"),
        (False, ".venv/bin/charlm", ".venv/bin/charlm"),
        (False, "my env/charlm", "'my env/charlm'"),
        (True, "/env/charlm/__main__.py", "charlm"),
        (False, "/env/charlm/__main__.py", f"{shlex.quote(sys.executable)} -m charlm"),
        (False, "/env/bin/pytest", "charlm"),
    ],
)
def test_what_to_do_next_is_what_works_in_this_shell(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch, on_path: bool, called: str, expected: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/env/bin/{name}" if on_path else None)
    monkeypatch.setattr(sys, "argv", [called])
    assert f"\n  {expected} train " in run_charlm.output()
    trained = run_charlm.output("train", names, "--model", "count-bigram", "--out", "run")
    assert f"\n  {expected} sample run" in trained


def test_what_to_do_first_works(run_charlm: CommandLine, names: Path) -> None:
    names.rename("words.txt")
    for line in run_charlm.output().splitlines():
        if line.startswith("  charlm "):
            _, command, *arguments = line.strip().split("  ")[0].split()
            run_charlm.output(*shorter(command, *arguments))


def test_commands_are_shown_in_groups(run_charlm: CommandLine) -> None:
    shown = panels(run_charlm.output("--help"))
    for name, entry in COMMANDS.items():
        assert re.search(rf"^│ {name} ", shown[entry.panel], re.MULTILINE), name
    assert list(shown) == ["Options", *dict.fromkeys(entry.panel for entry in COMMANDS.values())]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [60, 79, 80, 200])
def test_help_fits_and_names_every_option_in_its_group(
    run_charlm: CommandLine, name: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run_charlm.output(name, "--help")
    assert all(len(line) <= columns for line in text.splitlines())
    assert "…" not in text
    assert "\\[" not in text
    groups = panels(text) if columns >= 80 else dict(re.findall(r"^([\w ]+):\n((?:  .*\n|\n)*)", text, re.MULTILINE))
    for parameter in PROGRAM.commands[name].params:
        default = "Arguments" if parameter.param_type_name == "argument" else "Options"
        group = groups[getattr(parameter, "rich_help_panel", None) or default]
        for flag in flags(parameter):
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", group), flag
        if getattr(parameter, "is_flag", False):
            # It takes nothing, so nothing is shown that it would take.
            assert not re.search(rf"{flags(parameter)[0]}\s+(-\w\s+)?<", group)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_of_a_command_ends_with_examples(
    run_charlm: CommandLine, name: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    examples = COMMANDS[name].examples
    assert 2 <= len(examples) <= 3
    end = run_charlm.output(name, "--help").split("\n Examples\n")[1]
    assert end.split() == [word for example in examples for part in example for word in part.split()]


def test_examples_work_in_their_order(run_charlm: CommandLine, names: Path, tmp_path: Path) -> None:
    for other in ("words.txt", "other.txt"):
        (tmp_path / other).write_text(names.read_text())
    for name, entry in COMMANDS.items():
        for example, _ in entry.examples:
            program, command, *arguments = shlex.split(example.partition(" > ")[0])
            assert (program, command) == ("charlm", name)
            run_charlm.output(*shorter(command, *arguments))
