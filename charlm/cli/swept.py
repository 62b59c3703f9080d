"""Options of `charlm train` that take several values in `charlm sweep`: a list of them, or a range to draw from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, get_args

import typer

from charlm._rules import shown
from charlm.cli import completion
from charlm.search_space import LogUniform, Uniform

_RANGES = {"log": LogUniform, "uniform": Uniform}
# What stands for an option that is left out, in a list with values of it.
_NONE = "none"


def swept(option: Any, *, separator: str = ",") -> Any:
    """What `train` declares as an option, for several values.

    Its value is a list of at least two, a `Uniform` or `LogUniform`, or the value that `train` takes.

    Args:
        option: an `Annotated` type of `charlm.cli.training_options`.
        separator: of the values in a list.
    """
    kind, declared = get_args(option)
    one = declared.parser or _PARSERS[next(type_ for type_ in get_args(kind) if type_ in _PARSERS)]
    several = copy.copy(declared)
    several.parser = lambda text: _values(text, one, separator)
    several.metavar = f"{declared.metavar}{separator}..." if declared.parser else "VALUES"
    if declared.autocompletion is not None:
        several.autocompletion = completion.word_list(declared.autocompletion(""))
    return several


def _values(text: str, one: Callable[[str], Any], separator: str) -> Any:
    kind, *ends = text.split(":")
    if kind in _RANGES:
        if len(ends) != 2:
            raise typer.BadParameter(f"{shown(text)} is not a range such as {kind}:LOW:HIGH")
        low, high = map(one, ends)
        try:
            return _RANGES[kind](low, high)
        except ValueError as error:
            raise typer.BadParameter(f"{shown(text)}: {error}") from None
    parts = text.split(separator)
    if len(parts) == 1:
        return one(text)
    return [None if part == _NONE else one(part) for part in parts]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{shown(text)} is not an integer") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{shown(text)} is not a number") from None


# How one value is read, of options that `train` leaves to typer.
_PARSERS: dict[type, Callable[[str], Any]] = {int: _integer, float: _number, str: str}
