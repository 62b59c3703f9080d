"""What `charlm` says of itself: its help in groups, and examples that work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import SHORTER, CommandLine

from charlm.cli.commands import COMMANDS


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have asked for colours, or for a width."""
    for variable in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(variable, raising=False)


def panels(text: str) -> dict[str, str]:
    """The boxes of a help, by title."""
    return dict(re.findall(r"^╭─ ([\w ]+?) ─+╮\n(.*?)^╰", text, re.MULTILINE | re.DOTALL))


def test_commands_are_shown_in_groups(run_charlm: CommandLine) -> None:
    shown = panels(run_charlm.output("--help"))
    for name, entry in COMMANDS.items():
        assert re.search(rf"^│ {name} ", shown[entry.panel], re.MULTILINE), name
    assert list(shown) == ["Options", *dict.fromkeys(entry.panel for entry in COMMANDS.values())]


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
    assert all(len(line) <= columns for line in end.splitlines())


def test_examples_work_in_their_order(run_charlm: CommandLine, names: Path, tmp_path: Path) -> None:
    for other in ("words.txt", "other.txt"):
        (tmp_path / other).write_text(names.read_text())
    for name, entry in COMMANDS.items():
        for example, _ in entry.examples:
            program, command, *arguments = shlex.split(example.partition(" > ")[0])
            assert (program, command) == ("charlm", name)
            run_charlm.output(command, *arguments, *SHORTER.get(command, []))
