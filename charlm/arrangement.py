"""Where the tokens of texts go: lines and streams to train, dev and test."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from charlm import token_arrays
from charlm._buffers import to_buffer
from charlm._text_extension import _text
from charlm.token_arrays import Allocate, Texts, new_arrays
from charlm.vocabulary import Vocabulary

SplitMethod = Literal["random", "makemore"]

SPLITS = ("train", "dev", "test")


class TooFewLinesError(ValueError):
    """A text has fewer lines than there are splits."""


# The arrays of a dataset by name: "tokens", all of them; "bounds", where dev and test begin in them; and of lines
# "ends", "dev_ends" and "test_ends", the ends of the examples of all, of dev and of test.
Arrays = dict[str, Tensor]


def arrange_lines(
    reading: Texts,
    counts: Sequence[_text.Counts],
    vocabulary: Vocabulary,
    context_length: int,
    split: SplitMethod,
    seed: int,
    allocate: Allocate,
) -> Arrays:
    if len(counts) > 1:
        return framed(reading, vocabulary, None, context_length, allocate)
    lines = counts[0].lines
    if lines < 3:
        raise TooFewLinesError(
            f"{reading.sources[0].path} has too few lines to split: train, dev and test need 3, got {lines}; "
            "mode='stream' reads it as one text"
        )
    if split == "random":
        dtype = token_arrays.index_dtype(reading.sources[0].size + 1)
        return framed(reading, vocabulary, _random_splits(lines, seed, dtype), context_length, allocate)
    unframed = framed(reading, vocabulary, None, 0, new_arrays, ("tokens", "ends"))
    tokens, ends = unframed["tokens"], unframed["ends"]
    # Without the example of the boundary that each line ends with.
    ends -= torch.arange(1, lines + 1, dtype=ends.dtype, device="cpu")
    first, second = _split_points(lines)
    size = len(tokens) + lines * context_length
    arrays = _line_arrays((first, second - first, lines - second), size, vocabulary, allocate)
    order = _makemore_order(lines).to(ends.dtype)
    _text.frame_lines(
        tokens.itemsize,
        ends.itemsize,
        to_buffer(tokens),
        to_buffer(ends),
        to_buffer(order),
        context_length,
        vocabulary.boundary,
        to_buffer(arrays["tokens"]),
        to_buffer(arrays["ends"]),
    )
    return _with_own_ends(arrays)


def framed(
    reading: Texts,
    vocabulary: Vocabulary,
    splits: Tensor | None,
    context_length: int,
    allocate: Allocate,
    names: Sequence[str] = ("tokens", "ends", "dev_ends", "test_ends"),
) -> Arrays:
    """The lines between boundaries, in the order of their splits."""
    arrays: Arrays = {}

    def make(lines: tuple[int, ...], size: int) -> tuple[Tensor, Tensor]:
        arrays.update(_line_arrays(lines, size, vocabulary, allocate, names))
        return arrays["tokens"], arrays["ends"]

    reading.encode_lines(vocabulary, splits, context_length, make)
    return _with_own_ends(arrays)


def _line_arrays(
    lines: tuple[int, ...],
    size: int,
    vocabulary: Vocabulary,
    allocate: Allocate,
    names: Sequence[str] = ("tokens", "ends", "dev_ends", "test_ends"),
) -> Arrays:
    index = token_arrays.index_dtype(size)
    sizes = {
        "tokens": (size, vocabulary.dtype),
        "ends": (sum(lines), index),
        "dev_ends": (lines[1], index),
        "test_ends": (lines[2], index),
    }
    return allocate({name: sizes[name] for name in names})


def _with_own_ends(arrays: Arrays) -> Arrays:
    """With those of dev and test, which count from their own first example."""
    if "dev_ends" in arrays:
        ends, test = arrays["ends"], len(arrays["test_ends"])
        second = len(ends) - test
        first = second - len(arrays["dev_ends"])
        torch.sub(ends[first:second], ends[first - 1], out=arrays["dev_ends"])
        torch.sub(ends[second:], ends[second - 1], out=arrays["test_ends"])
    return arrays


def arrange_stream(
    reading: Texts,
    counts: Sequence[_text.Counts],
    vocabulary: Vocabulary,
    context_length: int,
    split: SplitMethod,
    seed: int,
    allocate: Allocate,
) -> Arrays:
    sizes = [count.tokens for count in counts]
    total = sum(sizes)
    first, second = _split_points(total) if len(sizes) == 1 else (sizes[0], sizes[0] + sizes[1])
    for i, (start, stop) in enumerate(((0, first), (first, second), (second, total))):
        own = min(i, len(sizes) - 1)
        path = reading.sources[own].path
        check_length(path, SPLITS[i], sizes[own], stop - start, context_length, vocabulary)
    arrays = allocate({"tokens": (total, vocabulary.dtype), "bounds": (2, torch.int64)})
    arrays["bounds"].copy_(torch.tensor([first, second], device="cpu"))
    reading.encode_stream(vocabulary, counts, arrays["tokens"])
    return arrays


def _makemore_order(lines: int) -> Tensor:
    order = array("q", range(lines))
    random.Random(42).shuffle(order)
    return torch.frombuffer(order, dtype=torch.int64)


def _random_splits(lines: int, seed: int, dtype: torch.dtype) -> Tensor:
    """A random choice of lines for each split, in which they keep the order of the file: the split of each line."""
    first, second = _split_points(lines)
    shuffled = torch.randperm(lines, generator=torch.Generator().manual_seed(int(seed)), dtype=dtype, device="cpu")
    splits = torch.zeros(lines, dtype=torch.uint8, device="cpu")
    splits[shuffled[first:second]] = 1
    splits[shuffled[second:]] = 2
    return splits


def check_length(path: str, name: str, size: int, available: int, context_length: int, vocabulary: Vocabulary) -> None:
    if available <= context_length:
        raise ValueError(
            f"{path} is too short: of its {size} {vocabulary.tokens_are} {name} would have {available}, "
            f"but context_length={context_length} needs {context_length + 1}"
        )


def _split_points(size: int) -> tuple[int, int]:
    """Where dev and test begin: at 80 % and 90 %, rounded down, but from 3 up no split is left empty."""
    first = max(0, min(int(0.8 * size), size - 2))
    return first, max(int(0.9 * size), first + 1)
