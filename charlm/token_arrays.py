"""Texts to arrays of tokens: read once to count, and again to encode, so that the text itself is never in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from charlm._buffers import to_buffer
from charlm._memory import check_memory
from charlm._text_extension import _text
from charlm.sources import Source
from charlm.vocabulary import TokensAre, Vocabulary

# Called with the number of bytes that were read, and of those that will have been at the end.
OnRead = Callable[[int, int], None]
# The lengths and dtypes of arrays by name, and what makes them.
ArraySizes = Mapping[str, tuple[int, torch.dtype]]
Allocate = Callable[[ArraySizes], dict[str, Tensor]]

# The number of a line's split that is in none.
DROPPED = 255


def new_arrays(arrays: ArraySizes) -> dict[str, Tensor]:
    """New arrays, of which nothing is written yet."""
    return {name: torch.empty(size, dtype=dtype, device="cpu") for name, (size, dtype) in arrays.items()}


def index_dtype(size: int) -> torch.dtype:
    """The smaller of int32 and int64 that holds 0 .. size."""
    return torch.int32 if size < 2**31 else torch.int64


@dataclass
class Texts:
    """Texts that become tokens together.

    Attributes:
        sources: one, or those of train, dev and test.
        by_line: whether lines are texts of their own.
        tokens_are: what the tokens stand for.
        on_read: told how far reading has come; None for nobody.
    """

    sources: Sequence[Source]
    by_line: bool
    tokens_are: TokensAre
    on_read: OnRead | None = None

    def __post_init__(self) -> None:
        self._done = 0
        # Counting and encoding; lines are shared out in between.
        self._all = (3 if self.by_line else 2) * sum(source.size for source in self.sources)

    def count(self) -> list[_text.Counts]:
        """What symbols each of the texts has, and how many tokens and lines.

        Raises:
            ValueError: one is empty, or not text.
        """
        counts = []
        for source in self.sources:
            count = _text.Counts(self.tokens_are, by_line=self.by_line)
            for piece in self._pieces(source):
                count.add(piece)
            if source.is_empty:
                raise ValueError(f"{source.path} is empty")
            if count.tokens == 0:
                raise ValueError(f"{source.path} has no {'line that is not blank' if self.by_line else 'word'}")
            counts.append(count)
        return counts

    def encode_stream(self, vocabulary: Vocabulary, counts: Sequence[_text.Counts], tokens: Tensor) -> None:
        """Writes the tokens of all texts, one after the other.

        Raises:
            ValueError: a symbol is not in the vocabulary, or a text has changed.
        """
        start = 0
        for source, count in zip(self.sources, counts, strict=True):
            encoder = _text.StreamEncoder(vocabulary._codec)
            own = to_buffer(tokens[start : start + count.tokens])
            written = self._for_each_piece(source, vocabulary, partial(encoder.add, tokens=own))
            if written != count.tokens:
                raise source.changed()
            start += count.tokens

    def encode_lines(
        self,
        vocabulary: Vocabulary,
        splits: Tensor | None,
        context_length: int,
        allocate: Callable[[tuple[int, ...], int], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """The lines of all texts between boundaries, those of the first split first, and the ends of their examples.

        Args:
            vocabulary: has all symbols, or a token for unknown ones.
            splits: (lines,) uint8, the split of each line of the only text; None takes the number of its text.
            context_length: how many boundaries come before a line; 0 is for lines that are to be put into an order.
            allocate: makes the arrays from the number of lines of each split and that of all tokens.

        Raises:
            ValueError: as `encode_stream`.
        """
        codec = vocabulary._line_codec
        chosen = to_buffer(splits) if splits is not None else b""
        totals = _text.LineTotals(codec)
        for number, source in enumerate(self.sources):
            self._for_each_piece(source, vocabulary, partial(totals.add, splits=chosen, split=number))
        size = (sum(totals.tokens) + sum(totals.lines) * context_length) * vocabulary.dtype.itemsize
        check_memory(f"a text of {sum(totals.lines):,} lines with context_length={context_length}", size)
        framer = _text.LineFramer(codec, totals.lines, totals.tokens, context_length, vocabulary.boundary)
        tokens, ends = allocate(totals.lines, framer.size)
        out: dict[str, Any] = {"tokens": to_buffer(tokens), "ends": to_buffer(ends), "index_size": ends.itemsize}
        for number, source in enumerate(self.sources):
            self._for_each_piece(source, vocabulary, partial(framer.add, splits=chosen, split=number, **out))
            framer.next_text()
        try:
            framer.close(out["tokens"])
        except IndexError:
            raise self.sources[0].changed() from None
        return tokens, ends

    def _for_each_piece(self, source: Source, vocabulary: Vocabulary, use: Callable[[bytes], int | None]) -> int | None:
        """Uses the pieces of a text, and returns what the last use did."""
        result = None
        for piece in self._pieces(source):
            try:
                result = use(piece)
            except _text.UnknownSymbol as error:
                offset, size = error.args
                symbol = piece[offset : offset + size].decode()
                boundary = self.by_line and symbol == vocabulary.symbols[vocabulary.boundary]
                there = ", where it ends lines: a vocabulary of this text has another boundary" if boundary else ""
                raise ValueError(
                    f"{source.locate(offset)} has {symbol!r}, which is not in the vocabulary{there}"
                ) from None
            except IndexError:
                raise source.changed() from None
        return result

    def _pieces(self, source: Source) -> Iterator[bytes]:
        if self.tokens_are == "bytes":
            return source.bytes_in_pieces("\n" if self.by_line else "", self._read)
        return source.pieces("\n" if self.by_line else " \n" if self.tokens_are == "words" else "", self._read)

    def _read(self, size: int) -> None:
        self._done += size
        if self.on_read is not None:
            self.on_read(self._done, self._all)
