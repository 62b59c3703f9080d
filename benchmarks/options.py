"""What the commands of `python -m benchmarks` share: their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.grid import DTYPES

Value = TypeVar("Value")


def add_options(parser: argparse.ArgumentParser, rows: Mapping[str, object]) -> None:
    """Those of a command that measures rows, by name, side by side."""
    parser.add_argument(
        "--dtypes",
        type=one_or_more(one_of({dtype_name(dtype): dtype for dtype in DTYPES})),
        default="float32,bfloat16",
        metavar="D1,D2",
        help="of float32, bfloat16 and float16 (default: the first two)",
    )
    parser.add_argument(
        "--threads", type=one_or_more(positive), default="1", metavar="N1,N2", help="such as 1,2 (default: 1)"
    )
    parser.add_argument(
        "--only",
        type=containing(rows),
        default="",
        metavar="TEXT",
        dest="rows",
        help="rows whose name contains this (default: all)",
    )
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="of each row (default: 7)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="with every round of every row")


def one_or_more(parse: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """The type of an option that is a list, separated by commas."""

    def parse_all(text: str) -> list[Value]:
        values = [parse(part) for part in text.split(",")]
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{text} has the same twice")
        return values

    return parse_all


def containing(choices: Mapping[str, Value]) -> Callable[[str], list[Value]]:
    """The type of an option that is part of some names."""

    def parse(text: str) -> list[Value]:
        found = [value for name, value in choices.items() if text in name]
        if not found:
            raise argparse.ArgumentTypeError(f"no row has {text!r} in its name")
        return found

    return parse


def one_of(choices: Mapping[str, Value]) -> Callable[[str], Value]:
    """The type of an option that is one of some names."""

    def parse(text: str) -> Value:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(choices)}, got {text!r}")
        return choices[text]

    return parse


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def file_to_write(text: str) -> Path:
    """Its folder must be there before minutes of measuring."""
    if not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder for {text}")
    return Path(text)
