"""charlm._text: UTF-8 as Python reads it, and no array left however wrong the arguments are."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm import _text


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
