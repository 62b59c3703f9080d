"""Every command and every Python snippet of the README, at tiny size."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import charlm
from charlm.cli import main

# Options that make a command take a moment.
SHORTER = {"train": ["--steps", "4", "--quiet"], "bench": ["--backends", "eager", "--seconds", "0.001"]}

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[tuple[list[str], str]]:
    """The arguments of every command `$ program ...`, and the output that the README shows for it."""
    found = []
    for block in blocks("console"):
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            name, *arguments = shlex.split(command, comments=True)
            if name == program:
                found.append((arguments, output))
    assert found
    return found


def shape(text: str) -> str:
    """A text with all numbers and names that a shorter training changes taken out."""
    return re.sub(r"\d[\d,.]*(e-?\d+)?", "#", text)


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = charlm.data.EMBEDDED_NAMES.read_text().splitlines()
    Path("names.txt").write_text("\n".join(names[::100]) + "\n")
    return tmp_path


def test_every_charlm_command_works(working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, output in commands("charlm"):
        counted = "count-bigram" in arguments
        assert main([*arguments, *(["--quiet"] if counted else SHORTER.get(arguments[0], []))]) == 0, arguments
        printed = capsys.readouterr().out
        if output and arguments[0] == "sample":
            # Other names, as the run is shorter, but as many.
            assert printed.count("\n") == output.count("\n")
        elif output:
            assert [shape(line).split() for line in printed.splitlines()] == [
                shape(line).split() for line in output.splitlines()
            ]


def test_what_does_not_depend_on_training_is_shown_exactly(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {shlex.join(arguments): output for arguments, output in commands("charlm")}
    count, evaluate = "train --model count-bigram --smoothing 1 --out runs/counts", "eval runs/counts --json"
    assert main(count.split()) == 0
    assert capsys.readouterr().out == shown[count]
    assert main(evaluate.split()) == 0
    losses, shown_losses = (json.loads(text) for text in (capsys.readouterr().out, shown[evaluate]))
    assert losses == {split: pytest.approx(values) for split, values in shown_losses.items()}


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for arguments, _ in commands("make"):
        for target in arguments:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_pip_installs_is_what_the_build_needs() -> None:
    """Installing is what continuous integration does; here, that the instructions agree with pyproject.toml."""
    project = (ROOT / "pyproject.toml").read_text()
    installed = [arguments for arguments, _ in commands("pip")]
    assert installed[0] == ["install", "torch"]
    assert installed[-1] == ["install", "--no-build-isolation", "."]
    requires = re.search(r"^requires = \[(.*)\]$", project, re.MULTILINE)
    assert requires is not None
    assert set(re.findall(r'"([a-z0-9]+)', requires[1])) <= set(installed[1])
    for extra in re.findall(r"charlm\[(\w+)\]", README):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_the_signatures_are_those_of_the_ops() -> None:
    namespace: dict[str, Any] = {}
    for block in blocks("py"):
        exec(f"def {block.strip()}: ...", namespace)
    shown = {name: value for name, value in namespace.items() if inspect.isfunction(value)}
    assert set(shown) == set(charlm.ops.__all__)
    for name, function in shown.items():
        parameters = inspect.signature(getattr(charlm.ops, name)).parameters.values()
        expected = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        assert list(inspect.signature(function).parameters.values()) == expected, name


def snippets() -> Iterator[str]:
    for block in blocks("python"):
        yield re.sub(r"\.run\(\d+\)", ".run(3)", block)


@pytest.mark.parametrize("code", list(snippets()), ids=lambda code: code.split("\n", 1)[0][:40])
def test_every_snippet_runs(code: str, working_folder: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    if "names" in namespace:
        assert len(namespace["names"]) == 5
        assert len(namespace["losses"]) == 3
    if "hidden" in namespace:
        hidden, output, targets = (namespace[name] for name in ("hidden", "output", "targets"))
        expected = torch.nn.functional.cross_entropy(output(hidden).flatten(0, 1), targets.flatten())
        torch.testing.assert_close(namespace["loss"], expected)


def test_a_test_is_behind_each_row_of_what_works() -> None:
    section = README.split("## What works where", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| ([^|]+?) \| yes \|", section, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| ", section, re.MULTILINE)) - 1
    tests = re.findall(r"^(.+): (tests/\w+\.py)::(test_\w+)$", section, re.MULTILINE)
    assert [row for row, _, _ in tests] == rows
    for _, path, name in tests:
        assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"


def test_links_to_files_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name} links to {target}"
