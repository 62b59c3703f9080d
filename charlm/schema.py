"""What comes from a file or a user, held against what it must be: strict JSON, and values against type hints."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints, is_typeddict

from charlm._rules import shown

# Of objects and arrays in each other: whoever shows a value, or walks through it, need not think of more.
_MAX_DEPTH = 20

_MISFIT = object()
_WORDS = {dict: "an object", type(None): "None"}


def parse_json(content: bytes) -> Any:
    """The value of a JSON text in UTF-8, read as strictly as RFC 8259 allows.

    Raises:
        ValueError: it is not JSON; a key is there twice; it is nested too deeply; or a number is one that 64 bits do
            not hold: NaN, Infinity, 1e999, or an integer outside of -2^63 .. 2^64 - 1.
    """
    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
        if _is_deep(value):
            raise RecursionError
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def checked(value: object, hint: Any, name: str) -> Any:
    """`value`, if it is what `hint` says; an integer where a float is expected becomes one.

    Args:
        value: of JSON types, or tuples.
        hint: a `TypedDict`, for an object with those keys and no others; `Literal`, `tuple`, a union, or a
            class. A bool is no number.
        name: of the value, for the message; "" for one that is not part of another.

    Raises:
        ValueError: it is not; the message names the part that is wrong.
    """
    if is_typeddict(hint):
        return _checked_object(value, hint, name)
    found = _fitted(value, hint)
    if found is _MISFIT:
        raise ValueError(f"{name} must be {described(hint)}, got {shown(value)}")
    return found


def described(hint: Any) -> str:
    """A type hint in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is tuple or not arguments:
        return str(getattr(hint, "__name__", hint) if origin is None else hint)
    return " or ".join(map(described, arguments))


def _checked_object(value: object, hint: Any, name: str) -> dict[str, Any]:
    whole = name or "it"
    if not isinstance(value, dict):
        raise ValueError(f"{whole} must be an object, got {shown(value)}")
    hints = get_type_hints(hint)
    for key in hints:
        if key in hint.__required_keys__ and key not in value:
            raise ValueError(f"{whole} has no {key!r}")
    for key in value:
        if key not in hints:
            raise ValueError(f"{whole} has an unknown key {shown(key)}, with the value {shown(value[key])}")
    return {key: checked(item, hints[key], f"{name}.{key}" if name else key) for key, item in value.items()}


def _fitted(value: object, hint: Any) -> Any:
    """`value` as `checked` returns it, or `_MISFIT`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        # Not by equality alone: True is equal to 1.
        return next((known for known in arguments if type(known) is type(value) and known == value), _MISFIT)
    if origin is tuple:
        return _fitted_tuple(value, arguments)
    if arguments:
        fits = (_fitted(value, argument) for argument in arguments)
        return next((found for found in fits if found is not _MISFIT), _MISFIT)
    if isinstance(value, bool):
        return value if hint is bool else _MISFIT
    if hint is float and isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            return _MISFIT
    return value if isinstance(value, hint) else _MISFIT


def _fitted_tuple(value: object, arguments: Sequence[Any]) -> Any:
    if not isinstance(value, tuple):
        return _MISFIT
    hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    if len(value) != len(hints):
        return _MISFIT
    found = tuple(_fitted(item, hint) for item, hint in zip(value, hints, strict=True))
    return _MISFIT if any(item is _MISFIT for item in found) else found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in values if keys.count(key) > 1)
        raise ValueError(f"the key {shown(repeated)} is there twice")
    return values


def _integer(digits: str) -> int:
    # Looked at before it is converted, which takes time quadratic in its length.
    value = int(digits) if len(digits) <= 20 else None
    if value is None or not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"the integer {shown(digits)[1:-1]} of {len(digits)} characters does not fit into 64 bits")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(digits)[1:-1]} does not fit into 64 bits")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
