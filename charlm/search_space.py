"""What the options of a sweep may take, and the settings that are tried: all of a grid, or some drawn at random.

Without torch, so that the command line can say at once what is wrong.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from charlm._rules import RULES, Choice, Either, Integers, Numbers, check, shown
from charlm._rules import Sequence as SequenceRule

# The options of a training that a sweep can try several values of, in the order in which its tables have them.
SWEPT = (
    *("learning_rate", "weight_decay", "momentum", "betas", "eps", "max_grad_norm", "optimizer", "schedule"),
    *("warmup_steps", "decay_factor", "batch_size", "context_length", "embedding_dim", "hidden_dim", "softcap"),
)
# Those that may also be left out, which is None.
OPTIONAL = ("max_grad_norm", "softcap")
# Digits of a drawn number: whoever wants it again can type it.
_DIGITS = 3
# Draws of settings that were drawn before, for each trial and in all, after which there seem to be no others. The last
# of 100,000 equally likely ones is found after 12 draws for each of them.
_REPEATED_FOR_EACH, _REPEATED_IN_ALL = 20, 1_000


@dataclass(frozen=True)
class Uniform:
    """Numbers between two, each as likely; integers, and both ends among them, of an option that takes integers.

    Args:
        low, high: low < high, both finite.

    Raises:
        ValueError: they are not.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_ends(self)

    def at(self, share: float, *, integer: bool) -> float:
        """The number below which `share`, in [0, 1), of all draws are."""
        if integer:
            return min(int(self.high), math.floor(self.low + share * (self.high - self.low + 1)))
        return _rounded(self.low + share * (self.high - self.low), self)


@dataclass(frozen=True)
class LogUniform:
    """Numbers between two whose logarithms are uniform: as many between 0.001 and 0.01 as between 0.01 and 0.1.

    Args:
        low, high: 0 < low < high, both finite.

    Raises:
        ValueError: they are not.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_ends(self)
        if self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0, got {self.low:g}")

    def at(self, share: float, *, integer: bool) -> float:
        """The number below which `share`, in [0, 1), of all draws are."""
        low, high = math.log(self.low), math.log(self.high)
        value = math.exp(low + share * (high - low))
        return min(max(round(value), int(self.low)), int(self.high)) if integer else _rounded(value, self)


Range: TypeAlias = Uniform | LogUniform
Values: TypeAlias = tuple[Any, ...] | Range
Setting: TypeAlias = dict[str, Any]


def checked(space: Mapping[str, Sequence[Any] | Range]) -> dict[str, Values]:
    """The values of each option, in the order of `SWEPT`, if they are what a sweep can try.

    Raises:
        ValueError: an option cannot be swept; a value is out of range or there twice; a range is of words or of pairs,
            or its ends are not among what the option may be.
    """
    for name in space:
        if name not in SWEPT:
            raise ValueError(f"{shown(name)} is not an option that a sweep tries values of: {', '.join(SWEPT)}")
    return {name: _checked_values(name, space[name]) for name in SWEPT if name in space}


def examples(values: Any) -> list[Any]:
    """Values that are all what an option may be only if every one of `values` is; of a single value itself."""
    if isinstance(values, (Uniform, LogUniform)):
        return [values.low, values.high]
    return values if isinstance(values, list) else [values]


def size(space: Mapping[str, Values]) -> float:
    """How many different settings there are."""
    return math.prod(_size(name, values) for name, values in space.items())


def grid(space: Mapping[str, Values]) -> Iterator[Setting]:
    """All settings: every value of each option with every one of the others, those of the last option varying first.

    Raises:
        ValueError: an option has a range.
    """
    for name, values in space.items():
        if not isinstance(values, tuple):
            raise ValueError(f"{name} has a range, {described(values)}, which has no end of values: give trials")
    for combination in itertools.product(*(tuple(values) for values in space.values())):  # type: ignore[arg-type]
        yield dict(zip(space, combination, strict=True))


def draw(space: Mapping[str, Values], trials: int, seed: int) -> list[Setting]:
    """Different settings, each option of each drawn by itself; the first ones do not depend on how many there are.

    Numbers between two that are not integers have three significant digits.

    Raises:
        ValueError: there are not so many different ones.

    Source: Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization", JMLR 13.
    """
    possible = size(space)
    too_many = f"trials must be at most {possible:,}, the number of settings, got {trials:,}"
    if trials > possible:
        raise ValueError(too_many)
    generator = random.Random(seed)
    found: list[Setting] = []
    seen: set[tuple[Any, ...]] = set()
    repeated = 0
    while len(found) < trials:
        setting = {name: _value(name, values, generator.random()) for name, values in space.items()}
        if tuple(setting.values()) not in seen:
            seen.add(tuple(setting.values()))
            found.append(setting)
        elif (repeated := repeated + 1) == _REPEATED_FOR_EACH * trials + _REPEATED_IN_ALL:
            raise ValueError(f"trials={trials} different settings could not be drawn, only {len(found)}")
    return found


def is_logarithmic(name: str, values: Values) -> bool:
    """Whether values are to be seen on a logarithmic axis: learning rates, and what spans a factor of ten or more."""
    if isinstance(values, Uniform):
        return False
    numbers = examples(values) if isinstance(values, LogUniform) else list(values)
    if not all(isinstance(number, (int, float)) and number > 0 for number in numbers):
        return False
    return name == "learning_rate" or isinstance(values, LogUniform) or max(numbers) >= 10 * min(numbers)


def described(values: Values) -> str:
    """Values as the command line writes them."""
    if isinstance(values, tuple):
        pairs = any(isinstance(value, tuple) for value in values)
        return ("/" if pairs else ",").join(map(value_shown, values))
    kind = "log" if isinstance(values, LogUniform) else "uniform"
    return f"{kind}:{values.low:.12g}:{values.high:.12g}"


def value_shown(value: Any) -> str:
    """A value of an option as the command line writes it."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(value_shown, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def setting_shown(setting: Mapping[str, Any]) -> str:
    """A setting as a message has it: learning_rate=0.1, momentum=0.9."""
    return ", ".join(f"{name}={value_shown(value)}" for name, value in setting.items())


def _checked_values(name: str, values: Sequence[Any] | Range) -> Values:
    rule = RULES[name]
    if isinstance(values, (Uniform, LogUniform)):
        if isinstance(rule, (Choice, SequenceRule)):
            raise ValueError(f"{name} takes {'words' if isinstance(rule, Choice) else 'pairs'}, which have no ranges")
        for end in examples(values):
            check(name, end)
        return values
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{name} must be a list of values, Uniform or LogUniform, got {shown(values)}")
    if not values:
        raise ValueError(f"{name} must have a value, got none")
    for value in values:
        check(name, value, optional=name in OPTIONAL)
    found = tuple(_exact(rule, value) for value in values)
    for i, value in enumerate(found):
        if value in found[:i]:
            raise ValueError(f"{name} has the value {value_shown(value)} twice")
    return found


def _exact(rule: object, value: Any) -> Any:
    """A value in the type that a configuration has it in."""
    if isinstance(rule, SequenceRule):
        return tuple(map(float, value))
    if value is None or isinstance(value, str):
        return value
    return float(value) if isinstance(rule, Numbers) else int(value)


def _size(name: str, values: Values) -> float:
    if isinstance(values, tuple):
        return len(values)
    return int(values.high) - int(values.low) + 1 if _takes_integers(name) else math.inf


def _value(name: str, values: Values, share: float) -> Any:
    if isinstance(values, tuple):
        return values[int(share * len(values))]
    return values.at(share, integer=_takes_integers(name))


def _takes_integers(name: str) -> bool:
    return isinstance(RULES[name], (Integers, Either))


def _check_ends(ends: Range) -> None:
    for end in (ends.low, ends.high):
        # Compared as they are: an integer may be larger than a float can be.
        if isinstance(end, bool) or not isinstance(end, (int, float)) or not abs(end) <= sys.float_info.max:
            raise ValueError(f"a range must have two finite numbers, got {shown(end)}")
    if ends.low >= ends.high:
        raise ValueError(f"a range must begin with the smaller number, got {ends.low:g} and {ends.high:g}")


def _rounded(value: float, ends: Range) -> float:
    return min(max(float(f"{value:.{_DIGITS}g}"), float(ends.low)), float(ends.high))
