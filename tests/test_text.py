"""charlm._text: UTF-8 as Python reads it, and no array left however wrong the arguments are."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import Buffer

from charlm import _text
from charlm.data import Split


def test_trailing_white_space_is_that_of_python() -> None:
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and chr(c) != "\n"]
    lines = ["a" + character for character in characters]
    _, ends = _text.Codec("".join(characters)).encode_lines("\n".join(lines).encode(), 4)
    lengths = torch.frombuffer(ends, dtype=torch.int32).diff(prepend=torch.zeros(1, dtype=torch.int32))
    assert lengths.tolist() == [len(line.rstrip()) for line in lines]


@given(st.binary() | st.text().map(str.encode))
def test_find_not_text_agrees_with_python(data: bytes) -> None:
    try:
        data.decode()
        expected = len(data)
    except UnicodeDecodeError as error:
        expected = error.start
    nul = data.find(0)
    expected = min(expected, nul if nul >= 0 else len(data))
    assert _text.find_not_text(data) == (expected if expected < len(data) else -1)


@pytest.mark.parametrize(
    "invalid",
    [
        b"\x80",  # a continuation byte by itself
        b"\xc0\x80",  # overlong forms
        b"\xc1\xbf",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xed\xa0\x80",  # surrogates
        b"\xed\xbf\xbf",
        b"\xf4\x90\x80\x80",  # beyond Unicode
        b"\xf5\x80\x80\x80",
        b"\xff",
        b"\xc3",  # cut short
        b"\xe4\xb8",
        b"\xf0\x9f\x8e",
        b"\xe4\xb8a",
        b"\0",
    ],
)
@pytest.mark.parametrize("before", [b"", b"plain", b"eight or more bytes", "中文".encode()])
def test_find_not_text_finds_every_kind_of_invalid_byte(before: bytes, invalid: bytes) -> None:
    assert _text.find_not_text(before + invalid) == len(before)
    assert _text.find_not_text(before + invalid + b"and more text") == len(before)


def test_invalid_utf8_stops_the_encoder() -> None:
    codec = _text.Codec("ab")
    for encode in (codec.encode, lambda text: codec.encode_lines(text, 4)):
        with pytest.raises(_text.InvalidUtf8, match=r"^2$"):
            encode(b"ab\xe4\xb8")
    with pytest.raises(_text.InvalidUtf8, match=r"^3$"):
        _text.distinct_characters(b"ab\n\xff", by_line=True)


def test_codec_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="sorted and distinct"):
        _text.Codec("ba")
    with pytest.raises(ValueError, match="sorted and distinct"):
        _text.Codec("aa")
    with pytest.raises(_text.UnknownToken, match=r"^1$"):
        _text.Codec("ab").decode(bytes([1, 2]))
    with pytest.raises(ValueError, match="whole, aligned elements of 2 bytes"):
        _text.Codec("".join(map(chr, range(300)))).decode(b"abc")
    with pytest.raises(ValueError, match="contiguous one-dimensional"):
        _text.Codec("ab").decode(memoryview(b"abcd")[::2])


def int32(*values: int) -> array[int]:
    return array("i", values)


def test_framing_stays_inside_its_arrays() -> None:
    def frame(
        ends: Sequence[int] = (2, 3), order: Sequence[int] = (0, 1), context_length: int = 2
    ) -> tuple[bytes, ...]:
        return _text.frame_lines(1, 4, b"\1\2\3", int32(*ends), int32(*order), context_length, 0)

    tokens, ends = frame()
    assert list(tokens) == [0, 0, 1, 2, 0, 0, 3, 0]
    assert list(memoryview(ends).cast("i")) == [3, 5]
    for arguments in ({"order": (0, 2)}, {"order": (-1, 0)}, {"ends": (4, 3)}, {"ends": (2, 4)}, {"order": (0, 0)}):
        with pytest.raises(IndexError):
            frame(**arguments)
    with pytest.raises(ValueError, match="at least 1"):
        frame(context_length=0)
    with pytest.raises(ValueError, match="longer than memory"):
        frame(context_length=2**61)
    with pytest.raises(ValueError, match="token_size must be 1, 2 or 4, got 3"):
        _text.frame_lines(3, 4, b"", int32(), int32(), 1, 0)
    with pytest.raises(ValueError, match="index_size must be 4 or 8, got 2"):
        _text.frame_lines(1, 2, b"", int32(), int32(), 1, 0)


def test_the_context_index_stays_inside_its_arrays() -> None:
    for tokens, ends, context_length in [
        (b"\0\0\1\0", (3,), 2),
        (b"\0\0\1\0", (3, 2), 2),
        (b"\0\0\1\0", (2,), 0),
        (b"\0\0\1\0", (2,), 5),
    ]:
        with pytest.raises(IndexError):
            _text.distinct_contexts(1, 4, tokens, int32(*ends), context_length, 256)
    assert [bytes(array) for array in _text.distinct_contexts(1, 4, b"\0", int32(), 1, 1)] == [
        b"",
        b"",
        bytes(8),
        b"",
        b"",
    ]


HOSTILE: list[tuple[Callable[[], object], str]] = [
    (
        lambda: distinct(array("h", [1, 2, -1, 3, -1, 2, 1, 0])),
        r"tokens\[2\] = -1 is out of range for a vocabulary of 5",
    ),
    (lambda: distinct(array("h", [1, 2, 0, 3, 5, 2, 1, 0])), r"tokens\[4\] = 5 is out of range for a vocabulary of 5"),
    (lambda: distinct(array("i", [1, 2, 0, 2**31 - 1, 1, 2]), 4), r"tokens\[3\] = 2147483647 is out of range"),
    (lambda: distinct(b"\1\2\0\xff\1\2\1", 1), r"tokens\[3\] = 255 is out of range"),
    (lambda: distinct(b"\0" * 8, 1, ends=(-1, 4)), r"ends must rise .* ends\[0\] = -1 after 0"),
    (lambda: distinct(b"\0" * 8, 1, ends=(3, 2)), r"ends must rise .* ends\[1\] = 2 after 3"),
    (lambda: distinct(b"\0" * 8, 1, ends=(8,)), "examples lie outside the tokens: 8 examples of 1 lines, 8 tokens"),
    (lambda: distinct(b"\0" * 8, 1, ends=(2**31 - 1,)), "examples lie outside the tokens"),
    (lambda: distinct(b"\0" * 8, 1, ends=(1,) * 100), "examples lie outside the tokens"),
    (lambda: distinct(b"\0" * 8, 1, context_length=2**62), "context_length must be from 1 to the number of tokens, 8"),
    (lambda: distinct(b"\0" * 8, 1, context_length=-1), "context_length must be from 1"),
    (lambda: distinct(b"", 1), "context_length must be from 1 to the number of tokens, 0"),
    (lambda: distinct(b"\0" * 8, 1, vocab_size=0), r"tokens\[0\] = 0 is out of range for a vocabulary of 0"),
    (lambda: distinct(b"\0" * 8, 1, vocab_size=-(2**63)), r"tokens\[0\] = 0 is out of range"),
    (lambda: distinct(array("d", [1.0, 2.0, 3.0]), 4), "bytes or of elements of 4 bytes, got one of format 'd'"),
    (lambda: distinct(array("f", [1.0, 2.0, 3.0]), 4), "bytes or of elements of 4 bytes, got one of format 'f'"),
    (lambda: distinct(array("q", [1, 2, 3, 1]), 4), "bytes or of elements of 4 bytes, got one of format"),
    (lambda: distinct(b"\0" * 7, 2), "whole, aligned elements of 2 bytes"),
    (lambda: distinct(memoryview(array("h", range(4)))[::2], 2), "contiguous one-dimensional"),
    (lambda: distinct(memoryview(bytes(8)).cast("B", (2, 4)), 1), "contiguous one-dimensional"),
    (
        lambda: _text.frame_lines(1, 4, b"\1\2\3", int32(2, 3), int32(0), 2, 256),
        "boundary = 256 is no token of 1 bytes",
    ),
    (lambda: _text.frame_lines(2, 4, b"\1\0", int32(1), int32(0), 2, -(2**31)), "boundary = -2147483648 is no token"),
    (
        lambda: _text.frame_lines(1, 4, b"\1\2\3", int32(2, 2**30), int32(0), 2, 0),
        "ends must rise from 0 to the number",
    ),
    (lambda: _text.frame_lines(1, 4, b"\1\2\3", int32(-5), int32(0), 2, 0), "longer than memory|must rise"),
    (lambda: _text.frame_lines(1, 4, b"\1\2\3", int32(5, -3, 3), int32(1, 2), 2, 0), "must rise"),
    (lambda: _text.frame_lines(1, 4, b"", int32(), int32(0), 2, 0), "order points outside the lines"),
    (lambda: _text.Codec("ba"), "sorted and distinct"),
    (lambda: _text.Codec("aa"), "sorted and distinct"),
    (lambda: _text.Codec("ab").decode(b"\0\2"), "1"),
    (lambda: _text.Codec("ab").decode(array("h", [0, 1])), "elements of 1 bytes"),
    (lambda: _text.Codec("ab").encode(b"abc"), "2"),
    (lambda: _text.Codec("ab").encode_lines(b"ab\n\xff", 4), "3"),
    (lambda: _text.Codec("ab").encode_lines(b"ab", 5), "index_size must be 4 or 8, got 5"),
]


def distinct(
    tokens: Buffer,
    token_size: int = 2,
    *,
    ends: Sequence[int] = (4,),
    context_length: int = 2,
    vocab_size: int = 5,
) -> object:
    return _text.distinct_contexts(token_size, 4, tokens, int32(*ends), context_length, vocab_size)


@pytest.mark.parametrize(("call", "message"), HOSTILE)
def test_hostile_arguments_are_refused_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        call()


def test_a_split_of_tokens_that_are_none() -> None:
    ends = torch.tensor([4], dtype=torch.int32)
    for bad in (-1, 5, 32767):
        tokens = torch.tensor([1, 2, bad, 3, 1, 2, 1, 0], dtype=torch.int16)
        with pytest.raises(IndexError, match=rf"tokens\[2\] = {bad} is out of range for a vocabulary of 5"):
            Split(tokens, ends, 2, 5).distinct()
