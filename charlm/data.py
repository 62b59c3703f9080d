"""Text files as examples, in three splits."""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from charlm import sources
from charlm._buffers import to_buffer, to_tensor
from charlm._memory import check_memory
from charlm._rules import check, check_type
from charlm._text_extension import _text
from charlm.sources import Source
from charlm.splits import Distinct, Split, TargetCounts
from charlm.vocabulary import Vocabulary

__all__ = ["Dataset", "Distinct", "Split", "TargetCounts", "TooFewLinesError", "load", "load_whole"]

Mode = Literal["lines", "stream"]
SplitMethod = Literal["random", "makemore"]

# The given names of names.md.
EMBEDDED_NAMES = Path(__file__).with_name("names.txt")

_SPLITS = ("train", "dev", "test")


class TooFewLinesError(ValueError):
    """A text has fewer lines than there are splits."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one text, or of three, and the whole of it.

    Attributes:
        train, dev, test: 80, 10 and 10 % of the text, or a text each; views of `all`.
        all: the whole text as one split. In stream mode it has 2 T examples more than the three together.
        vocabulary: of the whole text, unless one was given.
        context_length: T.
        mode: "lines" or "stream".
        name: of the file, or "names" for the embedded names.
        piped: the texts that came out of a pipe and cannot be read again, by the argument of `load`.
    """

    train: Split
    dev: Split
    test: Split
    all: Split
    vocabulary: Vocabulary
    context_length: int
    mode: Mode
    name: str
    piped: Mapping[str, bytes] = field(default_factory=dict)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    dev: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    context_length: int = 3,
    mode: Mode = "lines",
    split: SplitMethod = "random",
    seed: int = 42,
    vocabulary: Vocabulary | None = None,
) -> Dataset:
    """The examples of a UTF-8 text file, split 80/10/10 into train, dev and test; or of a file for each of them.

    A byte order mark is dropped, and "\\r\\n" and "\\r" are read as "\\n".

    `mode="lines"`: every line, such as a name or a sentence, is a text of its own, which starts from T boundaries and
    ends with one. Trailing white space is dropped, and blank lines are skipped. The boundary is a token of its own,
    which no line has in it: see `Vocabulary`. Whole lines go into the splits.

    `mode="stream"`: the file is one text, and every character of it a token, "\\n" included. "\\n" is also the
    boundary: a file of names has 27 symbols, and contexts cross from one name into the next. The splits are contiguous,
    and no example crosses from one into another: the first T tokens of each are context only.

    Args:
        path: the file; without one, the embedded names of the United States (names.md). A pipe is read to its end, and
            so is standard input, which is "-".
        dev, test: files of their own, both or neither; then `path` is that of train, and nothing is shuffled. The
            vocabulary is that of all three, so that a character of dev that train lacks has a token, never trained.
        context_length: T, from 1 to 2^31 - 1.
        mode: "lines" or "stream".
        split: "random" chooses the lines of each split by torch.randperm from `seed`; they keep their order. "makemore"
            does as the lecture, whatever the seed: `random.seed(42); random.shuffle(lines)`, and cuts, which on
            makemore's names.txt gives 182,625 / 22,655 / 22,866 examples at T = 3. A stream is never shuffled.
        seed: of the random split.
        vocabulary: encode with this one, for a model that was trained with it, instead of that of the file.

    Raises:
        OSError: a file cannot be read.
        TypeError: `vocabulary` is none, or a path is no path.
        ValueError: a file is empty, not text, too short, or neither a file nor a pipe; a character is not in
            `vocabulary`; another argument is out of its range.

    Source of the makemore split: Karpathy, "nn-zero-to-hero", makemore part 2.
    """
    _check_arguments(context_length, mode, vocabulary)
    check("split", split)
    check("seed", seed)
    if mode == "stream" and split == "makemore":
        raise ValueError("split='makemore' shuffles lines, but mode='stream' keeps the text in one piece")
    own = {name: value for name, value in (("dev", dev), ("test", test)) if value is not None}
    if len(own) == 1:
        raise ValueError(f"dev and test go together: give a file for both, or for neither, got {next(iter(own))} alone")
    if own and split == "makemore":
        raise ValueError("split='makemore' divides one file, but dev and test have files of their own")
    texts = _read({"path": EMBEDDED_NAMES if path is None else path, **own})
    vocabulary, encoded = _encode(list(texts.values()), mode, vocabulary)
    if mode == "lines":
        if not own:
            _check_lines(texts["path"], encoded[0])
        whole, splits = _split_lines(encoded, context_length, split, seed, vocabulary)
    else:
        whole, splits = _split_stream(list(texts.values()), encoded, context_length, vocabulary)
    piped = {name: source.text for name, source in texts.items() if not source.is_file}
    train_split, dev_split, test_split = splits
    return Dataset(
        train_split, dev_split, test_split, whole, vocabulary, context_length, mode, texts["path"].name, piped
    )


def load_whole(
    path: str | os.PathLike[str], *, context_length: int, mode: Mode, vocabulary: Vocabulary | None = None
) -> Split:
    """All examples of a text in the order of the file, as one split: for texts of any length that has one example.

    Arguments and errors are those of `load`.
    """
    _check_arguments(context_length, mode, vocabulary)
    source = sources.read(path)
    vocabulary, encoded = _encode([source], mode, vocabulary)
    if mode == "lines":
        _, ends = encoded[0]
        return _framed(encoded, torch.arange(len(ends), dtype=ends.dtype, device="cpu"), context_length, vocabulary)
    tokens, _ = encoded[0]
    _check_length(source, "the text", len(tokens), len(tokens), context_length)
    return _stream(tokens, context_length, vocabulary)


# Tokens, and in lines mode where each line ends in them.
_Encoded = tuple[Tensor, Tensor]


def _check_arguments(context_length: int, mode: Mode, vocabulary: Vocabulary | None) -> None:
    check("context_length", context_length)
    check("mode", mode)
    check_type("vocabulary", vocabulary, Vocabulary, type(None))


def _read(paths: Mapping[str, str | os.PathLike[str]]) -> dict[str, Source]:
    if sum(str(path) in sources.STANDARD_INPUT for path in paths.values()) > 1:
        raise ValueError("standard input can be read only once")
    return {name: sources.read(path) for name, path in paths.items()}


def _encode(texts: Sequence[Source], mode: Mode, vocabulary: Vocabulary | None) -> tuple[Vocabulary, list[_Encoded]]:
    """The vocabulary, of all texts unless it is given, and each text in it."""
    characters = [_text.distinct_characters(source.text, by_line=mode == "lines") for source in texts]
    for source, some in zip(texts, characters, strict=True):
        if not some:
            raise ValueError(f"{source.path} has no line that is not blank")
    if vocabulary is None:
        vocabulary = Vocabulary.from_text("".join(characters), boundary="\n" if mode == "stream" else None)
    encode = _encode_lines if mode == "lines" else _encode_stream
    return vocabulary, [encode(source, some, vocabulary) for source, some in zip(texts, characters, strict=True)]


def _encode_lines(source: Source, characters: str, vocabulary: Vocabulary) -> _Encoded:
    """The tokens of all lines without boundaries, and where each line ends in them."""
    boundary = vocabulary.characters[vocabulary.boundary]
    index = _index_dtype(len(source.text) + 1)
    try:
        # A boundary in a line is found as a character that a vocabulary without it does not have.
        if boundary in characters:
            _text.Codec(characters.replace(boundary, "")).encode_lines(source.text, index.itemsize)
        tokens, ends = vocabulary._codec.encode_lines(source.text, index.itemsize)
    except _text.UnknownCharacter as error:
        where, character = source.locate(error.args[0])
        there = ", where it ends lines: a vocabulary of this text has another boundary"
        there = there if character == boundary else ""
        raise ValueError(f"{where} has {character!r}, which is not in the vocabulary{there}") from None
    return to_tensor(tokens, vocabulary.dtype), to_tensor(ends, index)


def _encode_stream(source: Source, characters: str, vocabulary: Vocabulary) -> _Encoded:
    try:
        tokens = to_tensor(vocabulary._codec.encode(source.text), vocabulary.dtype)
    except _text.UnknownCharacter as error:
        where, character = source.locate(error.args[0])
        raise ValueError(f"{where} has {character!r}, which is not in the vocabulary") from None
    return tokens, torch.empty(0, dtype=torch.int32, device="cpu")


def _check_lines(source: Source, encoded: _Encoded) -> None:
    _, ends = encoded
    if len(ends) < 3:
        raise TooFewLinesError(
            f"{source.path} has too few lines to split: train, dev and test need 3, got {len(ends)}; "
            "mode='stream' reads it as one text"
        )


def _split_lines(
    encoded: list[_Encoded], context_length: int, split: SplitMethod, seed: int, vocabulary: Vocabulary
) -> tuple[Split, list[Split]]:
    counts = [len(ends) for _, ends in encoded]
    lines, dtype = sum(counts), encoded[0][1].dtype
    if len(encoded) > 1:
        first, second = counts[0], counts[0] + counts[1]
        order = torch.arange(lines, device="cpu")
    else:
        first, second = _split_points(lines)
        order = _makemore_order(lines) if split == "makemore" else _random_order(lines, first, second, seed, dtype)
    whole = _framed(encoded, order, context_length, vocabulary)
    return whole, [_lines_of(whole, start, stop) for start, stop in ((0, first), (first, second), (second, lines))]


def _framed(encoded: list[_Encoded], order: Tensor, context_length: int, vocabulary: Vocabulary) -> Split:
    """The lines of all texts in this order, between boundaries."""
    tokens, ends = encoded[0]
    if len(encoded) > 1:
        index = _index_dtype(sum(len(tokens) + len(ends) for tokens, ends in encoded))
        shifts = [0, len(encoded[0][0]), len(encoded[0][0]) + len(encoded[1][0])]
        tokens = torch.cat([tokens for tokens, _ in encoded])
        ends = torch.cat([ends.to(index) + shift for (_, ends), shift in zip(encoded, shifts, strict=True)])
    size = (len(tokens) + len(ends) * context_length) * tokens.itemsize
    check_memory(f"a text of {len(ends):,} lines with context_length={context_length}", size)
    order = order.to(ends.dtype)
    framed, framed_ends = _text.frame_lines(
        tokens.itemsize,
        ends.itemsize,
        to_buffer(tokens),
        to_buffer(ends),
        to_buffer(order),
        context_length,
        vocabulary.boundary,
    )
    return Split(to_tensor(framed, tokens.dtype), to_tensor(framed_ends, ends.dtype), context_length, len(vocabulary))


def _makemore_order(lines: int) -> Tensor:
    order = array("q", range(lines))
    random.Random(42).shuffle(order)
    return torch.frombuffer(order, dtype=torch.int64)


def _random_order(lines: int, first: int, second: int, seed: int, dtype: torch.dtype) -> Tensor:
    """A random choice of lines for each split, in which they keep the order of the file: far faster to gather."""
    shuffled = torch.randperm(lines, generator=torch.Generator().manual_seed(int(seed)), dtype=dtype, device="cpu")
    piece = torch.zeros(lines, dtype=torch.uint8, device="cpu")
    piece[shuffled[first:second]] = 1
    piece[shuffled[second:]] = 2
    del shuffled
    return torch.cat([(piece == k).nonzero()[:, 0].to(dtype) for k in range(3)])


def _lines_of(whole: Split, start: int, stop: int) -> Split:
    """The lines start .. stop-1 as a split: a view of the tokens, closed by the first boundary of the next line."""
    before = int(whole.ends[start - 1]) if start > 0 else 0
    ends = whole.ends[start:stop] - before if start > 0 else whole.ends[:stop]
    first = before + start * (whole.context_length - 1)
    size = int(ends[-1]) + (stop - start) * (whole.context_length - 1) + 1
    return Split(whole.tokens[first : first + size], ends, whole.context_length, whole.vocab_size)


def _split_stream(
    texts: Sequence[Source], encoded: list[_Encoded], context_length: int, vocabulary: Vocabulary
) -> tuple[Split, list[Split]]:
    tokens = encoded[0][0] if len(encoded) == 1 else torch.cat([tokens for tokens, _ in encoded])
    if len(encoded) == 1:
        first, second = _split_points(len(tokens))
    else:
        first, second = len(encoded[0][0]), len(tokens) - len(encoded[2][0])
    bounds = ((0, first), (first, second), (second, len(tokens)))
    for i, (start, stop) in enumerate(bounds):
        size = len(encoded[min(i, len(encoded) - 1)][0])
        _check_length(texts[min(i, len(texts) - 1)], _SPLITS[i], size, stop - start, context_length)
    splits = [_stream(tokens[start:stop], context_length, vocabulary) for start, stop in bounds]
    return _stream(tokens, context_length, vocabulary), splits


def _stream(tokens: Tensor, context_length: int, vocabulary: Vocabulary) -> Split:
    examples = len(tokens) - context_length
    ends = torch.tensor([examples], dtype=_index_dtype(examples), device="cpu")
    return Split(tokens, ends, context_length, len(vocabulary))


def _check_length(source: Source, name: str, size: int, available: int, context_length: int) -> None:
    if available <= context_length:
        raise ValueError(
            f"{source.path} is too short: of its {size} characters {name} would have {available}, "
            f"but context_length={context_length} needs {context_length + 1}"
        )


def _split_points(size: int) -> tuple[int, int]:
    """Where dev and test begin: at 80 % and 90 %, rounded down, but from 3 up no split is left empty."""
    first = max(0, min(int(0.8 * size), size - 2))
    return first, max(int(0.9 * size), first + 1)


def _index_dtype(size: int) -> torch.dtype:
    """The smaller of int32 and int64 that holds 0 .. size."""
    return torch.int32 if size < 2**31 else torch.int64
