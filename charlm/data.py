"""Text files as examples: T characters of context and the character that follows."""

from __future__ import annotations

import codecs
import os
import random
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from charlm._buffers import to_buffer, to_tensor
from charlm._text_extension import _text
from charlm.vocabulary import Vocabulary

Mode = Literal["lines", "stream"]
SplitMethod = Literal["random", "makemore"]

# The given names of names.md.
EMBEDDED_NAMES = Path(__file__).with_name("names.txt")


class TargetCounts:
    """How often each target follows each distinct context: a sparse (U, V) matrix, whose rows come out dense.

    In compressed sparse rows: the targets of context u are `targets[row_ptr[u] : row_ptr[u + 1]]`, ascending, and
    `values` has their counts.

    Attributes:
        row_ptr: (U+1,) int64.
        targets: (nnz,) of the token dtype.
        values: (nnz,) int64, all positive; they sum to N.
        shape: (U, V).
    """

    def __init__(self, row_ptr: Tensor, targets: Tensor, values: Tensor, vocab_size: int) -> None:
        self.row_ptr = row_ptr
        self.targets = targets
        self.values = values
        self.shape = (len(row_ptr) - 1, vocab_size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """The counts of the contexts start .. stop-1: (stop - start, V) int64. ValueError if the step is not 1."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"rows of counts come in steps of 1, got {step}")
        row_ptr = self.row_ptr[start : max(start, stop) + 1]
        entries = slice(int(row_ptr[0]), int(row_ptr[-1]))
        dense = torch.zeros(len(row_ptr) - 1, self.shape[1], dtype=torch.int64, device="cpu")
        row = torch.repeat_interleave(torch.arange(len(dense), device="cpu"), row_ptr.diff())
        dense[row, self.targets[entries].long()] = self.values[entries]
        return dense


@dataclass(frozen=True, eq=False)
class Distinct:
    """Each context of a split once, numbered 0 .. U-1 by first appearance.

    Examples with the same context have the same logits, so that sums over examples become sums over contexts:
    sum_j -log p(target_j | context_j) = sum_u sum_v -counts[u, v] log p(v | contexts[u]).

    Attributes:
        contexts: (U, T) of the token dtype.
        index: (N,) int32, the context of each example: `contexts[index]` is `split.contexts`. int64 from N = 2^31.
        counts: (U, V), how often each target follows each context.
    """

    contexts: Tensor
    index: Tensor
    counts: TargetCounts

    def __len__(self) -> int:
        return len(self.contexts)

    def part(self, contexts: slice) -> Distinct:
        """Some of the contexts, start .. stop-1, without the index of the examples."""
        row_ptr, counts = self.counts.row_ptr[contexts.start : contexts.stop + 1], self.counts
        entries = slice(int(row_ptr[0]), int(row_ptr[-1]))
        own = TargetCounts(row_ptr - row_ptr[0], counts.targets[entries], counts.values[entries], counts.shape[1])
        return Distinct(self.contexts[contexts], self.index[:0], own)


class Split:
    """N examples over one array of tokens, in which contexts overlap: no example is stored by itself.

    The tokens are lines one after the other, each as T boundaries and its characters, then a boundary that closes the
    last. A line of L characters has L + 1 examples, and example j, on line k, has its context at
    `tokens[j + k (T - 1)]` and the T - 1 tokens after it, and as its target the token that follows these. A stream is
    one line without boundaries: example j starts at `tokens[j]`.

    Args:
        tokens: 1-D, of the vocabulary's dtype, on the CPU.
        ends: (lines,) int32 or int64, the number of examples up to and including each line.
        context_length: T.
        vocab_size: V.
    """

    def __init__(self, tokens: Tensor, ends: Tensor, context_length: int, vocab_size: int) -> None:
        self.tokens = tokens
        self.ends = ends
        self.context_length = context_length
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        """N, the number of examples."""
        return int(self.ends[-1])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The contexts (B, T) and targets (B,) of the examples `indices` (B,), on the CPU, in the dtype of the tokens.

        Raises:
            IndexError: an index is not in 0 .. N-1.
            TypeError: `indices` are not integers.
            ValueError: `indices` is not one-dimensional.
        """
        if indices.dim() != 1:
            raise ValueError(f"indices must have shape (B,), got {tuple(indices.shape)}")
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"indices must be integers, got {indices.dtype}")
        indices = indices.long()
        if len(indices) > 0:
            low, high = torch.aminmax(indices)
            if low < 0 or high >= len(self):
                position = int(((indices < 0) | (indices >= len(self))).nonzero()[0])
                raise IndexError(
                    f"indices[{position}] = {int(indices[position])} is out of range for {len(self)} examples"
                )
        starts = self._starts(indices)
        return self._windows()[starts], self.tokens[starts + self.context_length]

    @property
    def contexts(self) -> Tensor:
        """(N, T), the contexts of all examples: for a stream a view of the tokens, otherwise a new tensor."""
        if len(self.ends) == 1:
            return self._windows()[: len(self)]
        return self._windows()[self._starts(torch.arange(len(self), device="cpu"))]

    @property
    def targets(self) -> Tensor:
        """(N,), the targets of all examples: for a stream a view of the tokens, otherwise a new tensor."""
        if len(self.ends) == 1:
            return self.tokens[self.context_length :]
        return self.tokens[self._starts(torch.arange(len(self), device="cpu")) + self.context_length]

    def distinct(self) -> Distinct:
        """Each context once, with the counts of its targets. Computed at each call, in time proportional to N."""
        tokens, ends = self.tokens.contiguous(), self.ends.contiguous()
        starts, index, row_ptr, targets, values = _text.distinct_contexts(
            tokens.itemsize,
            ends.itemsize,
            to_buffer(tokens),
            to_buffer(ends),
            self.context_length,
            self.vocab_size,
        )
        counts = TargetCounts(
            to_tensor(row_ptr, torch.int64),
            to_tensor(targets, tokens.dtype),
            to_tensor(values, torch.int64),
            self.vocab_size,
        )
        contexts = self._windows()[to_tensor(starts, torch.int64)]
        return Distinct(contexts, to_tensor(index, ends.dtype), counts)

    def _windows(self) -> Tensor:
        return self.tokens.unfold(0, self.context_length, 1)

    def _starts(self, indices: Tensor) -> Tensor:
        lines = torch.searchsorted(self.ends, indices.to(self.ends.dtype), right=True)
        return indices + lines * (self.context_length - 1)

    def __repr__(self) -> str:
        return f"Split({len(self):,} examples, context_length={self.context_length})"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one text, and the whole of it.

    Attributes:
        train, dev, test: 80, 10 and 10 % of the text, views of `all`.
        all: the whole text as one split. In stream mode it has 2 T examples more than the three together.
        vocabulary: of the whole text, unless one was given.
        context_length: T.
        mode: "lines" or "stream".
        name: of the file, or "names" for the embedded names.
    """

    train: Split
    dev: Split
    test: Split
    all: Split
    vocabulary: Vocabulary
    context_length: int
    mode: Mode
    name: str


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    context_length: int = 3,
    mode: Mode = "lines",
    split: SplitMethod = "random",
    seed: int = 42,
    vocabulary: Vocabulary | None = None,
) -> Dataset:
    """The examples of a UTF-8 text file, split 80/10/10 into train, dev and test.

    A byte order mark is dropped, and "\\r\\n" and "\\r" are read as "\\n".

    `mode="lines"`: every line, such as a name, is a text of its own, which starts from T boundaries and ends with one.
    Trailing white space is dropped, blank lines are skipped, and the boundary, ".", may not occur in a line. Whole
    lines go into the splits.

    `mode="stream"`: the file is one text, and every character of it a token, "\\n" included. "\\n" is also the
    boundary: a file of names has 27 symbols, and contexts cross from one name into the next. The splits are contiguous,
    and no example crosses from one into another: the first T tokens of each are context only.

    Args:
        path: the file; without one, the embedded names of the United States (names.md).
        context_length: T, from 1 to 2^31 - 1.
        mode: "lines" or "stream".
        split: "random" chooses the lines of each split by torch.randperm from `seed`; they keep their order. "makemore"
            does as the lecture, whatever the seed: `random.seed(42); random.shuffle(lines)`, and cuts, which on
            makemore's names.txt gives 182,625 / 22,655 / 22,866 examples at T = 3. A stream is never shuffled.
        seed: of the random split.
        vocabulary: encode with this one, for a model that was trained with it, instead of that of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is empty, not text, or too short; a line has the boundary in it; a character is not in
            `vocabulary`; another argument is out of its range.

    Source of the makemore split: Karpathy, "nn-zero-to-hero", makemore part 2.
    """
    if type(context_length) is not int or not 1 <= context_length < 2**31:
        raise ValueError(f"context_length must be an integer from 1 to 2^31 - 1, got {context_length!r}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be 'lines' or 'stream', got {mode!r}")
    if split not in get_args(SplitMethod):
        raise ValueError(f"split must be 'random' or 'makemore', got {split!r}")
    if mode == "stream" and split == "makemore":
        raise ValueError("split='makemore' shuffles lines, but mode='stream' keeps the text in one piece")
    file = EMBEDDED_NAMES if path is None else Path(path)
    if mode == "lines":
        vocabulary, whole, (train, dev, test) = _read_lines(file, context_length, split, seed, vocabulary)
    else:
        vocabulary, whole, (train, dev, test) = _read_stream(file, context_length, vocabulary)
    return Dataset(train, dev, test, whole, vocabulary, context_length, mode, file.stem)


def _read_lines(
    file: Path, context_length: int, split: SplitMethod, seed: int, vocabulary: Vocabulary | None
) -> tuple[Vocabulary, Split, list[Split]]:
    vocabulary, tokens, ends = _encode_lines(file, vocabulary)
    if len(ends) < 3:
        raise ValueError(f"{file} has too few lines to split: train, dev and test need 3, got {len(ends)}")
    first, second = _split_points(len(ends))
    if split == "makemore":
        order = _makemore_order(len(ends)).to(ends.dtype)
    else:
        order = _random_order(len(ends), first, second, seed, ends.dtype)
    framed, framed_ends = _text.frame_lines(
        tokens.itemsize,
        ends.itemsize,
        to_buffer(tokens),
        to_buffer(ends),
        to_buffer(order),
        context_length,
        vocabulary.boundary,
    )
    whole = Split(to_tensor(framed, tokens.dtype), to_tensor(framed_ends, ends.dtype), context_length, len(vocabulary))
    bounds = [(0, first), (first, second), (second, len(ends))]
    return vocabulary, whole, [_lines_of(whole, start, stop) for start, stop in bounds]


def _makemore_order(lines: int) -> Tensor:
    order = array("q", range(lines))
    random.Random(42).shuffle(order)
    return torch.frombuffer(order, dtype=torch.int64)


def _random_order(lines: int, first: int, second: int, seed: int, dtype: torch.dtype) -> Tensor:
    """A random choice of lines for each split, in which they keep the order of the file: far faster to gather."""
    shuffled = torch.randperm(lines, generator=torch.Generator().manual_seed(seed), dtype=dtype, device="cpu")
    piece = torch.zeros(lines, dtype=torch.uint8, device="cpu")
    piece[shuffled[first:second]] = 1
    piece[shuffled[second:]] = 2
    del shuffled
    return torch.cat([(piece == k).nonzero()[:, 0].to(dtype) for k in range(3)])


def _encode_lines(file: Path, vocabulary: Vocabulary | None) -> tuple[Vocabulary, Tensor, Tensor]:
    """The vocabulary, the tokens of all lines without boundaries, and where each line ends in them."""
    text = _read_text(file)
    characters = _text.distinct_characters(text, by_line=True)
    if not characters:
        raise ValueError(f"{file} has no line that is not blank")
    vocabulary = vocabulary or Vocabulary(characters)
    boundary = vocabulary.characters[vocabulary.boundary]
    index = _index_dtype(len(text) + 1)
    try:
        # A boundary in a line is found as a character that a vocabulary without it does not have.
        if boundary in characters:
            _text.Codec(characters.replace(boundary, "")).encode_lines(text, index.itemsize)
        tokens, ends = vocabulary._codec.encode_lines(text, index.itemsize)
    except _text.UnknownCharacter as error:
        where, character = _locate(file, text, error.args[0])
        if character != boundary:
            raise ValueError(f"{where} has {character!r}, which is not in the vocabulary") from None
        raise ValueError(
            f"{where} has {boundary!r}, which marks where lines begin and end: read the file with mode='stream', "
            "or with a vocabulary that has another boundary"
        ) from None
    return vocabulary, to_tensor(tokens, vocabulary.dtype), to_tensor(ends, index)


def _lines_of(whole: Split, start: int, stop: int) -> Split:
    """The lines start .. stop-1 as a split: a view of the tokens, closed by the first boundary of the next line."""
    before = int(whole.ends[start - 1]) if start > 0 else 0
    ends = whole.ends[start:stop] - before if start > 0 else whole.ends[:stop]
    first = before + start * (whole.context_length - 1)
    size = int(ends[-1]) + (stop - start) * (whole.context_length - 1) + 1
    return Split(whole.tokens[first : first + size], ends, whole.context_length, whole.vocab_size)


def _read_stream(
    file: Path, context_length: int, vocabulary: Vocabulary | None
) -> tuple[Vocabulary, Split, list[Split]]:
    text = _read_text(file)
    if vocabulary is None:
        vocabulary = Vocabulary(_text.distinct_characters(text, by_line=False), boundary="\n")
    try:
        tokens = to_tensor(vocabulary._codec.encode(text), vocabulary.dtype)
    except _text.UnknownCharacter as error:
        where, character = _locate(file, text, error.args[0])
        raise ValueError(f"{where} has {character!r}, which is not in the vocabulary") from None
    first, second = _split_points(len(tokens))
    bounds = {"train": (0, first), "dev": (first, second), "test": (second, len(tokens))}
    for name, (start, stop) in bounds.items():
        if stop - start <= context_length:
            raise ValueError(
                f"{file} is too short: of its {len(tokens)} characters {name} would have {stop - start}, "
                f"but context_length={context_length} needs {context_length + 1}"
            )

    def stream(start: int, stop: int) -> Split:
        examples = stop - start - context_length
        ends = torch.tensor([examples], dtype=_index_dtype(examples), device="cpu")
        return Split(tokens[start:stop], ends, context_length, len(vocabulary))

    return vocabulary, stream(0, len(tokens)), [stream(start, stop) for start, stop in bounds.values()]


def _read_text(file: Path) -> bytes:
    """The text of a file in UTF-8, with "\\n" at the end of lines; ValueError if it is empty or not text."""
    text = file.read_bytes()
    offset = _text.find_not_text(text)
    if offset >= 0:
        raise ValueError(f"{file} is not UTF-8 text: byte 0x{text[offset]:02x} at offset {offset}")
    text = text.removeprefix(codecs.BOM_UTF8)
    if not text:
        raise ValueError(f"{file} is empty")
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text


def _locate(file: Path, text: bytes, offset: int) -> tuple[str, str]:
    """The place in the file of the character at a byte offset, and that character."""
    line = text.count(b"\n", 0, offset) + 1
    return f"{file}, line {line}", text[offset : offset + 4].decode(errors="ignore")[0]


def _split_points(size: int) -> tuple[int, int]:
    """Where dev and test begin: at 80 % and 90 %, rounded down, but from 3 up no split is left empty."""
    first = max(0, min(int(0.8 * size), size - 2))
    return first, max(int(0.9 * size), first + 1)


def _index_dtype(size: int) -> torch.dtype:
    """The smaller of int32 and int64 that holds 0 .. size."""
    return torch.int32 if size < 2**31 else torch.int64
