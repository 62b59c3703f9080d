"""What arguments may be: one rule for each name, whoever is given it, a function of Python or the command line.

Without torch, so that the command line can say at once that an option is wrong.
"""

from __future__ import annotations

import codecs
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

# Of numbers and texts that a message shows.
_MOST_CHARACTERS = 60


@dataclass(frozen=True)
class Integers:
    """The integers low .. high."""

    low: int
    high: int

    def fault(self, value: object) -> str | None:
        """What `value` should be, if it is not."""
        if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < self.low:
            return {0: "an integer >= 0", 1: "a positive integer"}.get(self.low, f"an integer >= {self.low}")
        return f"an integer <= {self.high}" if int(value) > self.high else None


@dataclass(frozen=True)
class Numbers:
    """The numbers low .. high, none of them infinite or NaN.

    Attributes:
        description: what they are called in a message.
        ends: whether low and high themselves are among them.
    """

    description: str
    low: float
    high: float
    ends: tuple[bool, bool]

    def fault(self, value: object) -> str | None:
        """What `value` should be, if it is not."""
        if not isinstance(value, Real) or isinstance(value, bool):
            return self.description
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        above = number >= self.low if self.ends[0] else number > self.low
        below = number <= self.high if self.ends[1] else number < self.high
        if above and not below and math.isfinite(number):
            return f"{self.description}, at most {self.high:g}" if self.ends[1] else self.description
        return None if above and below else self.description


@dataclass(frozen=True)
class Choice:
    """Some words."""

    words: tuple[str, ...]

    def fault(self, value: object) -> str | None:
        """What `value` should be, if it is not."""
        return None if isinstance(value, str) and value in self.words else f"one of {', '.join(self.words)}"


@dataclass(frozen=True)
class Either:
    """One word, or what another rule allows."""

    rule: Integers
    word: str

    def fault(self, value: object) -> str | None:
        """What `value` should be, if it is not."""
        if isinstance(value, str):
            return None if value == self.word else f"a positive integer or {self.word!r}"
        return self.rule.fault(value)


@dataclass(frozen=True)
class Sequence:
    """Lists and tuples of numbers that each follow one rule.

    Attributes:
        length: how many; None for any number of them, which ascend.
    """

    rule: Integers | Numbers
    length: int | None
    description: str

    def fault(self, value: object) -> str | None:
        """What `value` should be, if it is not."""
        if not isinstance(value, (list, tuple)):
            return self.description
        items = list(value)
        if any(self.rule.fault(item) for item in items):
            return self.description
        if self.length is None:
            return None if items == sorted(set(items)) else self.description
        return None if len(items) == self.length else self.description


@dataclass(frozen=True)
class Encoding:
    """What Python can decode text from."""

    def fault(self, value: object) -> str | None:
        """What `value` should be, if it is not."""
        expected = "an encoding of text that Python knows, such as latin-1"
        if not isinstance(value, str):
            return expected
        try:
            found = codecs.lookup(value)
        except (LookupError, ValueError):
            return expected
        # Codecs such as "hex" make bytes of bytes.
        return None if getattr(found, "_is_text_encoding", True) and found.incrementaldecoder else expected


Rule = Integers | Numbers | Choice | Either | Sequence | Encoding

_SIZE = Integers(1, 2**31 - 1)
_COUNT = Integers(0, 2**63 - 1)
_POSITIVE_COUNT = Integers(1, 2**63 - 1)
# What a generator of torch takes.
_SEED = Integers(-(2**63), 2**64 - 1)
# What stays positive and finite in float32, whose largest number is 3.4e38 and whose smallest normal one 1.2e-38.
_POSITIVE = Numbers("a positive number", 1e-37, 1e38, (True, True))
_NOT_NEGATIVE = Numbers("a finite number >= 0", 0.0, math.inf, (True, False))
# What float32 can hold.
_MODERATE = Numbers("a finite number >= 0", 0.0, 1e38, (True, True))
_BELOW_ONE = Numbers("in [0, 1)", 0.0, 1.0, (True, False))

RULES: dict[str, Rule] = {
    # Data
    "context_length": _SIZE,
    "mode": Choice(("lines", "stream")),
    "split": Choice(("random", "makemore")),
    "split_seed": _SEED,
    "tokens": Choice(("characters", "bytes", "words")),
    "limit_vocab": _POSITIVE_COUNT,
    "min_count": _POSITIVE_COUNT,
    "encoding": Encoding(),
    # Models
    "model": Choice(("count-bigram", "bigram", "mlp")),
    "vocab_size": _SIZE,
    "embedding_dim": _SIZE,
    "hidden_dim": _SIZE,
    "softcap": _POSITIVE,
    "smoothing": _MODERATE,
    # Training
    "steps": _COUNT,
    "total_steps": _POSITIVE_COUNT,
    "batch_size": Either(_POSITIVE_COUNT, "full"),
    "optimizer": Choice(("sgd", "adamw")),
    "learning_rate": Numbers("a positive number", 0.0, math.inf, (False, False)),
    "momentum": _BELOW_ONE,
    "betas": Sequence(_BELOW_ONE, 2, "two numbers in [0, 1)"),
    "eps": _MODERATE,
    "weight_decay": _MODERATE,
    "schedule": Choice(("constant", "step", "cosine", "linear")),
    "warmup_steps": _COUNT,
    "milestones": Sequence(_COUNT, None, "ascending steps"),
    "decay_factor": Numbers("a positive number", 0.0, math.inf, (False, False)),
    "max_grad_norm": Numbers("a positive number", 0.0, math.inf, (False, False)),
    "seed": _SEED,
    "checkpoint_every": _POSITIVE_COUNT,
    # Sweeps
    "trials": _SIZE,
    "draw_seed": _SEED,
    "seeds": _SIZE,
    "halving": Integers(2, 2**31 - 1),
    # Sampling
    "n": _COUNT,
    "temperature": _NOT_NEGATIVE,
    "top_k": _POSITIVE_COUNT,
    "top_p": Numbers("a number in (0, 1]", 0.0, 1.0, (False, True)),
    "min_length": Integers(0, 2**31 - 1),
    "max_length": _SIZE,
    # Pictures
    "format": Choice(("png", "svg", "pdf")),
    "order": Choice(("probability", "vocabulary")),
    # Export
    "to": Choice(("c", "onnx", "html")),
    # Scoring
    "top": _COUNT,
    # Races
    "threads": Integers(1, 1024),
    "seconds": Numbers("a positive number", 0.0, 86400.0, (False, True)),
}


def check(name: str, value: Any, *, rule: str | None = None, optional: bool = False) -> Any:
    """`value`, if it is what the argument `name` may be.

    Args:
        rule: the name in `RULES`, where it is another.
        optional: whether None is allowed.

    Raises:
        ValueError: it is not; the message has the argument, what it must be, and the value.
    """
    if optional and value is None:
        return None
    if fault := RULES[rule or name].fault(value):
        raise ValueError(f"{name} must be {fault}{' or None' if optional else ''}, got {shown(value)}")
    return value


def check_type(name: str, value: object, *types: type) -> None:
    """TypeError where `value` is of none of these types."""
    if not isinstance(value, types):
        expected = " or ".join("None" if t is type(None) else t.__name__ for t in types)
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")


def shown(value: object) -> str:
    """A value in a message: itself, or how it begins."""
    if isinstance(value, int) and abs(value) >= 10**_MOST_CHARACTERS:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
