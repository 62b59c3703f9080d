"""Characters and the tokens that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from charlm._buffers import to_buffer, to_tensor
from charlm._rules import check_type, shown
from charlm._text_extension import _text

_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class Vocabulary:
    """The sorted distinct characters of a text; token i stands for the i-th of them.

    A character is a Unicode code point, in or beyond the Basic Multilingual Plane; sorted means by code point. The
    boundary, which marks where a line begins and ends, is one of them, by which it is shown. A line that has this
    character itself cannot be told from two, so that a vocabulary of sentences has another boundary than ".", such as
    "\\n", of which a line has none.

    Args:
        characters: single characters, as one string or a sequence of strings, in any order; repeated ones count once.
        boundary: the boundary character.

    Attributes:
        symbols: tuple of V strings: how token i is shown.
        characters: the symbols, which are sorted.
        tokens_are: "characters".
        unknown: token of what has no token of its own, or None where there is none.
        boundary: token of the boundary character.
        dtype: of the tokens: uint8 up to V = 256, int16 up to V = 32,768, else int32.

    Raises:
        TypeError: `characters` are no sequence.
        ValueError: no characters, an element that is not one character, or a lone surrogate.
    """

    def __init__(self, characters: str | Sequence[str], *, boundary: str = ".") -> None:
        check_type("characters", characters, Sequence)
        if len(characters) == 0:
            raise ValueError("characters must not be empty")
        for i, character in enumerate(characters):
            if fault := _fault(character):
                raise ValueError(f"characters[{i}] = {character!r} is {fault}")
        if fault := _fault(boundary):
            raise ValueError(f"boundary = {boundary!r} is {fault}")
        self.characters = tuple(sorted({*characters, boundary}))
        self.symbols = self.characters
        self.tokens_are: Literal["characters", "bytes", "words"] = "characters"
        self.unknown: int | None = None
        self.boundary = self.characters.index(boundary)
        self._codec = _text.Codec("".join(self.characters))
        self.dtype = _DTYPES[self._codec.token_size]

    @classmethod
    def from_text(cls, text: str, boundary: str | None = None) -> Vocabulary:
        """The vocabulary of the characters of `text`; ValueError if it is empty.

        The boundary is "." where `text` has none, otherwise "\\n", so that no line has it; unless it is given.
        """
        check_type("text", text, str)
        try:
            utf8 = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text[{error.start}] = {text[error.start]!r} is a lone surrogate") from None
        if not utf8:
            raise ValueError("text must not be empty")
        if boundary is None:
            boundary = "\n" if "." in text else "."
        return cls(_text.distinct_characters(utf8, by_line=False), boundary=boundary)

    def encode(self, text: str) -> Tensor:
        """The tokens of `text`: (len(text),) of `dtype`. ValueError if a character is not in the vocabulary."""
        check_type("text", text, str)
        # A lone surrogate passes into bytes that are not UTF-8, and is reported as any other unknown character.
        utf8 = text.encode("utf-8", "surrogatepass")
        try:
            return to_tensor(self._codec.encode(utf8), self.dtype)
        except (_text.UnknownCharacter, _text.InvalidUtf8) as error:
            position = len(utf8[: error.args[0]].decode())
            raise ValueError(
                f"text[{position}] = {text[position]!r} is not in the vocabulary of {len(self)} characters"
            ) from None

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The characters of `tokens`, a 1-D integer tensor (any strides, any device) or a sequence of integers.

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
            raise IndexError(f"tokens[{position}] = {int(tokens[position])} is out of range for {len(self)} characters")
        tokens = tokens.to(self.dtype).contiguous()
        return self._codec.decode(to_buffer(tokens))

    def _as_tensor(self, tokens: Sequence[int]) -> Tensor:
        """Integers that no tensor could hold are out of range all the same."""
        for i, token in enumerate(tokens):
            if isinstance(token, int) and not -(2**63) <= token < 2**63:
                raise IndexError(f"tokens[{i}] = {shown(token)} is out of range for {len(self)} characters")
        try:
            return torch.as_tensor(tokens, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"tokens must be integers, got {shown(tokens)}") from None

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` restores it from, fit for JSON: `characters`, one string, and `boundary`, a character."""
        return {"characters": "".join(self.characters), "boundary": self.characters[self.boundary]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Vocabulary:
        """The vocabulary that `to_dict` was called on; ValueError if `values` is not such a dict."""
        if not isinstance(values, dict) or values.keys() != {"characters", "boundary"}:
            raise ValueError(f"a vocabulary must have the keys 'characters' and 'boundary', got {values!r}")
        if not all(isinstance(value, str) for value in values.values()):
            raise ValueError(f"characters and boundary must be strings, got {values!r}")
        return cls(values["characters"], boundary=values["boundary"])

    def __len__(self) -> int:
        return len(self.characters)

    def __contains__(self, character: object) -> bool:
        return character in self.characters

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.characters, self.boundary))

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        values = self.to_dict()
        return f"Vocabulary({values['characters']!r}, boundary={values['boundary']!r})"


def _fault(value: object) -> str | None:
    """Why `value` is no character, if it is none."""
    if not isinstance(value, str) or len(value) != 1:
        return "not a single character"
    if "\ud800" <= value <= "\udfff":
        return "a lone surrogate, not a character"
    return None
