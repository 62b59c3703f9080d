"""Characters, bytes or words, and the tokens that stand for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from charlm._buffers import to_buffer, to_tensor
from charlm._rules import check, check_type, shown
from charlm._text_extension import _text

_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}

TokensAre = Literal["characters", "bytes", "words"]

# What stands for a character or a word that has no token of its own. Unicode's sign for a character that cannot be
# shown is read as such; "<unk>" would otherwise be three words.
_UNKNOWN = {"characters": "\ufffd", "words": "<unk>"}
# The boundary of bytes and words: no line has it, and no word.
_NEWLINE = "\n"
# Of the characters that stand for words where text is drawn: from there on all code points are characters.
_FIRST_STAND_IN = 0x10000
_MOST_WORDS = 0x110000 - _FIRST_STAND_IN


class Vocabulary:
    """The sorted distinct characters of a text, or its words, or all bytes; token i stands for the i-th of them.

    A character is a Unicode code point, in or beyond the Basic Multilingual Plane; sorted means by code point. The
    boundary, which marks where a line begins and ends, is one of them, by which it is shown. A line that has this
    character itself cannot be told from two, so that a vocabulary of sentences has another boundary than ".", such as
    "\\n", of which a line has none.

    `Vocabulary.of_bytes()` has the 256 bytes, of UTF-8 for one, and "\\n" as its boundary. `Vocabulary.of_words` has
    words. A word is a run of characters that are neither white space nor punctuation, in which an apostrophe may stand;
    every punctuation mark is a word by itself. White space separates words; a boundary is shown as "\\n".

    Args:
        characters: single characters, as one string or a sequence of strings, in any order; repeated ones count once.
        boundary: the boundary character.
        unknown: whether there is a token for all other characters, which is shown as U+FFFD.

    Attributes:
        symbols: tuple of V strings: how token i is shown. A byte that is not ASCII is shown as "<0xE9>".
        tokens_are: "characters", "bytes" or "words".
        boundary: token of the boundary.
        unknown: token of what has no token of its own, or None: then that is an error.
        dtype: of the tokens: uint8 up to V = 256, int16 up to V = 32,768, else int32.

    Raises:
        TypeError: `characters` are no sequence.
        ValueError: no characters, an element that is not one character, or a lone surrogate.
    """

    symbols: tuple[str, ...]
    tokens_are: TokensAre
    boundary: int
    unknown: int | None
    dtype: torch.dtype

    def __init__(self, characters: str | Sequence[str], *, boundary: str = ".", unknown: bool = False) -> None:
        check_type("characters", characters, Sequence)
        check_type("unknown", unknown, bool)
        if len(characters) == 0:
            raise ValueError("characters must not be empty")
        for i, character in enumerate(characters):
            if fault := _fault(character):
                raise ValueError(f"characters[{i}] = {character!r} is {fault}")
        if fault := _fault(boundary):
            raise ValueError(f"boundary = {boundary!r} is {fault}")
        if unknown and boundary == _UNKNOWN["characters"]:
            raise ValueError(f"boundary = {boundary!r} is what unknown characters are shown as")
        extra = {boundary, _UNKNOWN["characters"]} if unknown else {boundary}
        self._set("characters", sorted({*characters, *extra}), boundary, unknown)

    @classmethod
    def of_bytes(cls) -> Vocabulary:
        """The 256 bytes: token i is byte i."""
        vocabulary = cls.__new__(cls)
        ascii_symbols = [chr(i) for i in range(128)]
        vocabulary._set("bytes", [*ascii_symbols, *(f"<0x{i:02X}>" for i in range(128, 256))], _NEWLINE, False)
        return vocabulary

    @classmethod
    def of_words(cls, words: Sequence[str], *, unknown: bool = False) -> Vocabulary:
        """The vocabulary of some words, sorted.

        Args:
            words: as a text is split into, in any order; repeated ones count once.
            unknown: whether there is a token for all other words, which is shown as "<unk>".

        Raises:
            ValueError: no words, more than 2^20, or an element that is not one word.
        """
        check_type("words", words, Sequence)
        check_type("unknown", unknown, bool)
        if len(words) == 0:
            raise ValueError("words must not be empty")
        for i, word in enumerate(words):
            if not isinstance(word, str) or any("\ud800" <= character <= "\udfff" for character in word):
                raise ValueError(f"words[{i}] = {shown(word)} is not a word")
        vocabulary = cls.__new__(cls)
        extra = {_NEWLINE, _UNKNOWN["words"]} if unknown else {_NEWLINE}
        symbols = sorted({*words, *extra})
        if len(symbols) > _MOST_WORDS:
            raise ValueError(
                f"a vocabulary has at most {_MOST_WORDS:,} words, got {len(symbols):,}: set limit_vocab or min_count"
            )
        vocabulary._set("words", symbols, _NEWLINE, unknown)
        return vocabulary

    def _set(self, tokens_are: TokensAre, symbols: Iterable[str], boundary: str, unknown: bool) -> None:
        self.symbols = tuple(symbols)
        self.tokens_are = tokens_are
        self.boundary = self.symbols.index(boundary)
        self.unknown = self.symbols.index(_UNKNOWN[tokens_are]) if unknown else None
        self._codec = self._new_codec(absent=-1)
        self.dtype = _DTYPES[self._codec.token_size]

    def _new_codec(self, absent: int) -> _text.Codec:
        unknown = -1 if self.unknown is None else self.unknown
        if self.tokens_are == "characters":
            return _text.Codec.of_characters("".join(self.symbols), unknown, absent)
        return _text.Codec.of_bytes() if self.tokens_are == "bytes" else _text.Codec.of_words([*self.symbols], unknown)

    @cached_property
    def _line_codec(self) -> _text.Codec:
        """Of lines, in which a boundary is a character as any other that is not in the vocabulary."""
        return self._new_codec(absent=self.boundary)

    @property
    def characters(self) -> tuple[str, ...]:
        """The symbols of a vocabulary of characters, each of them one; AttributeError of another."""
        if self.tokens_are != "characters":
            raise AttributeError(f"a vocabulary of {self.tokens_are} has symbols, but no characters")
        return self.symbols

    @classmethod
    def from_text(
        cls,
        text: str,
        boundary: str | None = None,
        *,
        tokens: TokensAre = "characters",
        limit_vocab: int | None = None,
        min_count: int | None = None,
    ) -> Vocabulary:
        """The vocabulary of `text`; ValueError if it is empty.

        Args:
            text: any.
            boundary: of characters; None is "." where `text` has none, otherwise "\\n", so that no line has it.
            tokens: what they are: "characters", "bytes" or "words".
            limit_vocab, min_count: as in `charlm.data.load`.
        """
        check_type("text", text, str)
        check("tokens", tokens)
        try:
            utf8 = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text[{error.start}] = {text[error.start]!r} is a lone surrogate") from None
        counts = _text.Counts(tokens, by_line=False)
        counts.add(utf8)
        if not counts.tokens:
            raise ValueError("text must not be empty")
        return cls.from_counts(
            {symbol: count for symbol, count in counts.sorted()},
            boundary,
            tokens=tokens,
            limit_vocab=limit_vocab,
            min_count=min_count,
        )

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[bytes, int],
        boundary: str | None = None,
        *,
        tokens: TokensAre = "characters",
        limit_vocab: int | None = None,
        min_count: int | None = None,
    ) -> Vocabulary:
        """The vocabulary of a text that has each character or word, in UTF-8, so many times; see `from_text`."""
        check("limit_vocab", limit_vocab, optional=True)
        check("min_count", min_count, optional=True)
        limited = limit_vocab is not None or min_count is not None
        if tokens == "bytes":
            if limited:
                raise ValueError("limit_vocab and min_count are of characters and words, but tokens='bytes'")
            return cls.of_bytes()
        kept = [symbol for symbol, count in counts.items() if count >= (min_count or 1)]
        if limit_vocab is not None and len(kept) > limit_vocab:
            kept = sorted(kept, key=lambda symbol: (-counts[symbol], symbol))[:limit_vocab]
        symbols = [symbol.decode() for symbol in kept]
        if tokens == "words":
            return cls.of_words(symbols or [_UNKNOWN["words"]], unknown=limited or _UNKNOWN["words"].encode() in counts)
        if boundary is None:
            boundary = _NEWLINE if b"." in counts else "."
        return cls(symbols or [boundary], boundary=boundary, unknown=limited)

    def encode(self, text: str) -> Tensor:
        """The tokens of `text`: (len(text),) of `dtype` for characters, more for bytes, fewer for words.

        ValueError if a character or word is not in the vocabulary, and there is no token for unknown ones.
        """
        check_type("text", text, str)
        # A lone surrogate passes into bytes that are not UTF-8, and is reported as any other unknown character.
        utf8 = text.encode("utf-8", "surrogatepass")
        try:
            return to_tensor(self._codec.encode(utf8), self.dtype)
        except (_text.UnknownSymbol, _text.InvalidUtf8) as error:
            offset, *size = error.args
            position = len(utf8[:offset].decode())
            what = utf8[offset : offset + size[0]].decode() if size else text[position]
            swapped = what.swapcase()
            there = f", but {swapped!r} is" if swapped in self.symbols else f" of {len(self)} {self.tokens_are}"
            raise ValueError(f"text[{position}] = {what!r} is not in the vocabulary{there}") from None

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of `tokens`, a 1-D integer tensor (any strides, any device) or a sequence of integers.

        Characters follow each other, words are joined by spaces, and bytes that are not UTF-8 become U+FFFD.

        Raises:
            IndexError: a token is not in 0 .. V-1.
            TypeError: `tokens` are not integers.
            ValueError: `tokens` is not one-dimensional.
        """
        check_type("tokens", tokens, Tensor, Sequence)
        if not isinstance(tokens, Tensor):
            tokens = self._as_tensor(tokens)
        tokens = tokens.cpu()
        if tokens.dim() != 1:
            raise ValueError(f"tokens must have one dimension, got shape {tuple(tokens.shape)}")
        if tokens.numel() == 0:
            return ""
        if tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
            raise TypeError(f"tokens must be integers, got {tokens.dtype}")
        tokens = tokens.long()  # where V can be compared with
        wrong = (tokens < 0) | (tokens >= len(self))
        if wrong.any():
            position = int(wrong.nonzero()[0])
            raise IndexError(
                f"tokens[{position}] = {int(tokens[position])} is out of range for {len(self)} {self.tokens_are}"
            )
        tokens = tokens.to(self.dtype).contiguous()
        return self._codec.decode(to_buffer(tokens)).decode(errors="replace")

    @cached_property
    def _stand_ins(self) -> str:
        """V ascending characters, one for each token: of a vocabulary of characters these themselves."""
        if self.tokens_are == "characters":
            return "".join(self.symbols)
        first = 0 if self.tokens_are == "bytes" else _FIRST_STAND_IN
        return "".join(map(chr, range(first, first + len(self))))

    def _text_of(self, stand_ins: str) -> str:
        """The text of the tokens that these characters stand for."""
        if self.tokens_are == "characters":
            return stand_ins
        first = ord(self._stand_ins[0])
        return self.decode(torch.tensor([ord(character) - first for character in stand_ins], device="cpu"))

    def _as_tensor(self, tokens: Sequence[int]) -> Tensor:
        """Integers that no tensor could hold are out of range all the same."""
        for i, token in enumerate(tokens):
            if isinstance(token, int) and not -(2**63) <= token < 2**63:
                raise IndexError(f"tokens[{i}] = {shown(token)} is out of range for {len(self)} {self.tokens_are}")
        try:
            return torch.as_tensor(tokens, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"tokens must be integers, got {shown(tokens)}") from None

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` restores it from, fit for JSON.

        Of characters: `characters`, one string, and `boundary`, a character; `unknown` is there if it has such a token.
        Of words: `words`, a list, and `unknown`. Of bytes: `bytes`, which is 256.
        """
        if self.tokens_are == "bytes":
            return {"bytes": len(self)}
        unknown = {} if self.unknown is None else {"unknown": self.symbols[self.unknown]}
        if self.tokens_are == "words":
            return {"words": [*self.symbols], **unknown}
        return {"characters": "".join(self.symbols), "boundary": self.symbols[self.boundary], **unknown}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Vocabulary:
        """The vocabulary that `to_dict` was called on; ValueError if `values` is not such a dict."""
        if not isinstance(values, dict):
            raise ValueError(f"a vocabulary must have the keys 'characters' and 'boundary', got {shown(values)}")
        keys = values.keys()
        if keys == {"bytes"}:
            if values["bytes"] != 256 or isinstance(values["bytes"], bool):
                raise ValueError(f"bytes must be 256, got {shown(values['bytes'])}")
            return cls.of_bytes()
        kind: TokensAre = "words" if "words" in keys else "characters"
        expected = {"words"} if kind == "words" else {"characters", "boundary"}
        if keys - {"unknown"} != expected:
            raise ValueError(f"a vocabulary must have the keys 'characters' and 'boundary', got {shown(values)}")
        if values.get("unknown", _UNKNOWN[kind]) != _UNKNOWN[kind]:
            raise ValueError(f"unknown must be {_UNKNOWN[kind]!r}, got {shown(values['unknown'])}")
        unknown = "unknown" in keys
        if kind == "words":
            words = values["words"]
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ValueError(f"words must be a list of strings, got {shown(words)}")
            return cls.of_words(words, unknown=unknown)
        if not isinstance(values["characters"], str) or not isinstance(values["boundary"], str):
            raise ValueError(f"characters and boundary must be strings, got {shown(values)}")
        return cls(values["characters"], boundary=values["boundary"], unknown=unknown)

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self.symbols

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.symbols, self.boundary, self.unknown))

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        if self.tokens_are != "characters":
            return f"Vocabulary.of_{self.tokens_are}({'' if self.tokens_are == 'bytes' else f'<{len(self)} words>'})"
        unknown = "" if self.unknown is None else ", unknown=True"
        return f"Vocabulary({''.join(self.symbols)!r}, boundary={self.symbols[self.boundary]!r}{unknown})"


def _fault(value: object) -> str | None:
    """Why `value` is no character, if it is none."""
    if not isinstance(value, str) or len(value) != 1:
        return "not a single character"
    if "\ud800" <= value <= "\udfff":
        return "a lone surrogate, not a character"
    return None
