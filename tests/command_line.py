"""Runs `charlm` in the process of the test, and says what came of it."""

from __future__ import annotations

import functools
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

from charlm.cli import main

if TYPE_CHECKING:
    from torch import Tensor

# Making the program out of its commands takes twice as long as most of them do, and gives the same each time.
typer.main.get_command = functools.cache(typer.main.get_command)

# Options that make a command take a moment.
_SHORTER = {
    "train": ["--steps", "4", "--quiet"],
    "sweep": ["--steps", "4", "--quiet"],
    "bench": ["--backends", "eager", "--seconds", "0.001"],
}

# What starts `python -m charlm` again, as that says itself where nobody finds `charlm`.
CALLED_AS_MODULE = ["charlm"] if shutil.which("charlm") else [sys.executable, "-m", "charlm"]

# Options of a model that is trained in a moment.
SMALL_MLP: tuple[object, ...] = ("--model", "mlp", "--backend", "eager", "--embedding-dim", 2, "--hidden-dim", 4)
SMALL_MLP += ("--batch-size", 8, "--optimizer", "sgd", "--learning-rate", 0.1, "--schedule", "constant", "--warmup", 0)


def shorter(command: str, *arguments: str) -> list[str]:
    """A command with options that make it take a moment; of a sweep that is resumed the steps cannot change."""
    resumed = command == "sweep" and "--resume" in arguments
    return [command, *arguments, *(["--quiet"] if resumed else _SHORTER.get(command, []))]


def without_times(text: str) -> str:
    """What a command printed, whatever time it took."""
    return re.sub(r"\b(trained in) \d+\.\d s", r"\1 # s", text)


def weights(run: Path) -> dict[str, Tensor]:
    """The parameters of a run."""
    from charlm import checkpoint

    return checkpoint.load(run).model.state_dict()


def assert_same_weights(run: Path, other: Path) -> None:
    tensors, other_tensors = weights(run), weights(other)
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.equal(other_tensors[name]), name


class Result:
    """What a command returned and printed."""

    def __init__(self, code: int, capsys: pytest.CaptureFixture[str]) -> None:
        self.code = code
        self.out, self.err = capsys.readouterr()


class CommandLine:
    """Runs `charlm` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Result:
        """Runs a command, whatever comes of it."""
        self._capsys.readouterr()
        return Result(main([str(argument) for argument in arguments]), self._capsys)

    def output(self, *arguments: object) -> str:
        """Runs a command that must succeed; returns what it printed."""
        result = self(*arguments)
        assert result.code == 0, result.err
        return result.out

    def error(self, *arguments: object) -> str:
        """Runs a command that must end with one line about bad input; returns that line."""
        result = self(*arguments)
        assert result.code == 2
        assert result.out == ""
        (line,) = result.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")
