"""charlm._text: UTF-8 as Python reads it, and no array left however wrong the arguments are."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

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
    totals = _text.LineTotals(_text.Codec.of_bytes())
    white = 0
    for line in lines:
        totals.add((line + "\n").encode(), b"", 0)
        white += line.rstrip() == "a"
    assert totals.lines == (len(lines), 0, 0)
    assert totals.tokens[0] == sum(len(line.rstrip().encode()) for line in lines)
    assert white == sum(character.isspace() for character in characters)


def read_in_pieces(data: bytes, sizes: Sequence[int], cuts: str = "") -> list[bytes]:
    """What a TextReader makes of data that comes so many bytes at a time, and then all of it."""
    reader, pieces, start = _text.TextReader(cuts), [], 0
    for size in sizes:
        pieces.append(reader.read(data[start : start + size], last=False))
        start += size
    return [*pieces, reader.read(data[start:], last=False), reader.read(b"", last=True)]


def normalized(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("\r\n\ufeff")), st.data())
def test_a_text_in_pieces_is_the_whole_text(text: str, data: st.DataObject) -> None:
    utf8 = text.encode()
    sizes = data.draw(st.lists(st.integers(0, 5)))
    pieces = read_in_pieces(utf8, sizes)
    assert "".join(piece.decode() for piece in pieces) == normalized(text)
    for cuts in ("\n", " \n"):
        pieces = read_in_pieces(utf8, sizes, cuts)
        assert b"".join(pieces).decode() == normalized(text)
        assert all(not piece or piece.decode()[-1] in cuts for piece in pieces[:-1])


@pytest.mark.parametrize("text", ["zoë\r\n中文\r🎉\n\r\r\nx", "\ufeffa\r", "\r\n\r\n", "\ufeff", "\ufeff\ufeffb"])
def test_a_text_cut_at_every_byte(text: str) -> None:
    utf8 = text.encode()
    for cut in range(len(utf8) + 1):
        assert b"".join(read_in_pieces(utf8, [cut])).decode() == normalized(text)
    assert b"".join(read_in_pieces(utf8, [1] * len(utf8))).decode() == normalized(text)


@given(st.binary() | st.text().map(str.encode), st.lists(st.integers(0, 4)))
def test_what_is_not_text_agrees_with_python(data: bytes, sizes: list[int]) -> None:
    try:
        data.decode()
        expected = len(data)
    except UnicodeDecodeError as error:
        expected = error.start
    nul = data.find(0)
    expected = min(expected, nul if nul >= 0 else len(data))
    if expected == len(data):
        assert b"".join(read_in_pieces(data, sizes)).decode() == normalized(data.decode())
        return
    before = normalized(data[:expected].decode())
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    for given_sizes in (sizes, [], [1] * len(data)):
        with pytest.raises(_text.NotText) as caught:
            read_in_pieces(data, given_sizes)
        assert caught.value.args == (expected, data[expected], line, column)


def test_where_a_piece_begins() -> None:
    reader = _text.TextReader("")
    places = []
    for data in (b"ab\r", b"\nz\xc3", b"\xabd\n\n", b"e"):
        reader.read(data, last=False)
        places.append((reader.line, reader.column))
    assert places == [(1, 1), (2, 1), (2, 2), (4, 1)]


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
def test_every_kind_of_invalid_byte(before: bytes, invalid: bytes) -> None:
    for data in (before + invalid, before + invalid + b"and more text"):
        for sizes in ([], [1] * len(data)):
            with pytest.raises(_text.NotText) as caught:
                read_in_pieces(data, sizes)
            assert caught.value.args[:2] == (len(before), invalid[0])


def test_invalid_utf8_stops_what_counts_and_encodes() -> None:
    for codec in (_text.Codec.of_characters(" ab"), _text.Codec.of_words(["\n", "ab"])):
        for data in (b"ab \xe4\xb8", b"ab \xff"):
            with pytest.raises(_text.InvalidUtf8, match=r"^3$"):
                codec.encode(data)
    for kind in ("characters", "words"):
        with pytest.raises(_text.InvalidUtf8):
            _text.Counts(kind, by_line=False).add(b"ab\n\xff")


def test_codec_refuses_what_it_cannot_hold() -> None:
    for characters in ("ba", "aa"):
        with pytest.raises(ValueError, match="sorted and distinct"):
            _text.Codec.of_characters(characters)
    with pytest.raises(_text.UnknownToken, match=r"^1$"):
        _text.Codec.of_characters("ab").decode(bytes([1, 2]))
    with pytest.raises(_text.UnknownToken, match=r"^0$"):
        _text.Codec.of_words(["\n", "a"]).decode(bytes([2]))
    with pytest.raises(ValueError, match="whole, aligned elements of 2 bytes"):
        _text.Codec.of_characters("".join(map(chr, range(300)))).decode(b"abc")
    with pytest.raises(ValueError, match="contiguous one-dimensional"):
        _text.Codec.of_characters("ab").decode(memoryview(b"abcd")[::2])
    for words in (["a"], ["\n", "a", "a"], ["\n", "a b"], ["\n", ""], ["\n", "a,"], ["\n", " a"], ["\n", "a'"]):
        with pytest.raises(ValueError, match=r"distinct|is not a word"):
            _text.Codec.of_words(words)


def frame(
    piece: bytes = b"ab\nc\n",
    splits: bytes = b"",
    split: int = 0,
    *,
    lines: tuple[int, int, int] = (2, 0, 0),
    tokens: tuple[int, int, int] = (3, 0, 0),
    context_length: int = 2,
    room: int = 0,
    index_size: int = 4,
    close: bool = True,
) -> tuple[bytes, bytes]:
    """Lines of the characters a, b, c, as LineFramer frames them with the boundary "."."""
    framer = _text.LineFramer(_text.Codec.of_characters(".abc"), lines, tokens, context_length, 0)
    framed, ends = bytearray(framer.size + room), bytearray(sum(lines) * index_size)
    framer.add(piece, splits, split, framed, ends, index_size)
    if close:
        framer.close(framed)
    return bytes(framed), bytes(ends)


def test_lines_are_framed_in_the_order_of_their_splits() -> None:
    tokens, ends = frame()
    assert list(tokens) == [0, 0, 1, 2, 0, 0, 3, 0]
    assert list(memoryview(ends).cast("i")) == [3, 5]
    tokens, ends = frame(splits=b"\2\0", lines=(1, 0, 1), tokens=(1, 0, 2), index_size=8)
    assert list(tokens) == [0, 0, 3, 0, 0, 1, 2, 0]
    assert list(memoryview(ends).cast("q")) == [2, 5]
    tokens, ends = frame(splits=b"\xff\1", lines=(0, 1, 0), tokens=(0, 1, 0))
    assert (list(tokens), list(memoryview(ends).cast("i"))) == ([0, 0, 3, 0], [2])
    tokens, ends = frame(context_length=0)
    assert (list(tokens), list(memoryview(ends).cast("i"))) == ([1, 2, 3, 0], [3, 5])


HOSTILE_FRAMES: list[tuple[dict[str, object], str]] = [
    ({"room": 1}, "other lines"),
    ({"lines": (1, 0, 0)}, "other lines"),
    ({"lines": (3, 0, 0)}, "other lines"),
    ({"tokens": (2, 0, 0)}, "other lines"),
    ({"tokens": (4, 0, 0)}, "other lines"),
    ({"tokens": (1, 2, 0)}, "other lines"),
    ({"splits": b"\0"}, "other lines"),
    ({"splits": b"\0\3"}, "does not exist"),
    ({"splits": b"\0\1"}, "other lines"),
    ({"split": 3}, "does not exist"),
    ({"split": 2}, "other lines"),
    ({"lines": (-1, 0, 0)}, "must not be negative"),
    ({"tokens": (0, 0, -(2**63))}, "must not be negative"),
    ({"lines": (2**62, 2**62, 2**62), "close": False}, "longer than memory"),
    ({"tokens": (2**56, 2**56, 2**62), "close": False}, "longer than memory"),
    ({"context_length": 2**61}, "longer than memory"),
    ({"context_length": -1}, "must not be negative"),
    ({"index_size": 2}, "index_size must be 4 or 8, got 2"),
]


@pytest.mark.parametrize(("arguments", "message"), HOSTILE_FRAMES)
def test_framing_stays_inside_its_arrays(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((IndexError, ValueError), match=message):
        frame(**arguments)


def test_what_is_written_to_must_be_writable_and_large_enough() -> None:
    codec = _text.Codec.of_characters(".abc")
    encoder = _text.StreamEncoder(codec)
    with pytest.raises(ValueError, match="can be written to"):
        encoder.add(b"a", bytes(4))
    with pytest.raises(IndexError, match="more tokens than were counted"):
        _text.StreamEncoder(codec).add(b"aaaaaaaaaaaaaaaaa", bytearray(16))
    assert encoder.add(b"ab", tokens := bytearray(4)) == 2
    assert encoder.add(b"c", tokens) == 3
    assert list(tokens) == [1, 2, 3, 0]
    with pytest.raises(IndexError, match="more tokens"):
        encoder.add(b"a", bytearray(2))
    for wide in (_text.Codec.of_bytes(), _text.Codec.of_words(["\n", "a"])):
        with pytest.raises(IndexError, match="more tokens"):
            _text.StreamEncoder(wide).add(b"a a a", bytearray(2))
    with pytest.raises(ValueError, match="boundary must be a token"):
        _text.LineFramer(codec, (0, 0, 0), (0, 0, 0), 2, 4)
    with pytest.raises(ValueError, match="three splits"):
        _text.LineFramer(codec, (0, 0), (0, 0, 0), 2, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens_are must be"):
        _text.Counts("letters", by_line=True)


def int32(*values: int) -> array[int]:
    return array("i", values)


def reorder(
    tokens: Buffer = b"\1\2\3",
    ends: Sequence[int] = (2, 3),
    order: Sequence[int] = (0, 1),
    context_length: int = 2,
    boundary: int = 0,
    *,
    token_size: int = 1,
    size: int = 8,
) -> tuple[bytearray, bytearray]:
    framed, framed_ends = bytearray(size * token_size), bytearray(4 * len(order))
    _text.frame_lines(token_size, 4, tokens, int32(*ends), int32(*order), context_length, boundary, framed, framed_ends)
    return framed, framed_ends


def test_lines_in_another_order() -> None:
    tokens, ends = reorder(order=(1, 0))
    assert list(tokens) == [0, 0, 3, 0, 0, 1, 2, 0]
    assert list(memoryview(ends).cast("i")) == [2, 5]
    for arguments in (
        {"order": (0, 2)},
        {"order": (-1, 0)},
        {"ends": (4, 3)},
        {"ends": (2, 4)},
        {"order": (0, 0)},
        {"size": 7},
        {"size": 9},
    ):
        with pytest.raises(IndexError):
            reorder(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        reorder(context_length=0)
    with pytest.raises(ValueError, match="longer than memory"):
        reorder(context_length=2**61)
    with pytest.raises(ValueError, match="token_size must be 1, 2 or 4, got 3"):
        reorder(token_size=3)
    with pytest.raises(ValueError, match="index_size must be 4 or 8, got 2"):
        _text.frame_lines(1, 2, b"", int32(), int32(), 1, 0, bytearray(1), bytearray())


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
    (lambda: distinct(b"\0" * 8, 1, step=0), "step must be positive, got 0"),
    (lambda: distinct(b"\0" * 8, 1, step=-(2**63)), "step must be positive"),
    (lambda: distinct(b"\0\0\0\0\7\0", 1, step=2), r"tokens\[4\] = 7 is out of range for a vocabulary of 5"),
    (lambda: reorder(boundary=256), "boundary = 256 is no token of 1 bytes"),
    (lambda: reorder(b"\1\0", (1,), (0,), 2, -(2**31), token_size=2), "boundary = -2147483648 is no token"),
    (lambda: reorder(ends=(2, 2**30), order=(0,)), "ends must rise from 0 to the number"),
    (lambda: reorder(ends=(-5,), order=(0,)), "longer than memory|must rise"),
    (lambda: reorder(ends=(5, -3, 3), order=(1, 2)), "must rise"),
    (lambda: reorder(b"", (), (0,)), "order points outside the lines"),
    (lambda: _text.Codec.of_characters("ba"), "sorted and distinct"),
    (lambda: _text.Codec.of_characters("ab", unknown=2), "unknown must be a token or -1"),
    (lambda: _text.Codec.of_words(["\n"], unknown=-2), "unknown must be a token or -1"),
    (lambda: _text.Codec.of_characters("ab").decode(b"\0\2"), "1"),
    (lambda: _text.Codec.of_characters("ab").decode(array("h", [0, 1])), "elements of 1 bytes"),
    (lambda: _text.Codec.of_characters("ab").encode(b"abc"), r"2, 1"),
    (lambda: _text.Codec.of_characters("ab").encode(b"abababababababc"), r"14, 1"),
]


def distinct(
    tokens: Buffer,
    token_size: int = 2,
    *,
    ends: Sequence[int] = (4,),
    context_length: int = 2,
    vocab_size: int = 5,
    step: int = 1,
) -> object:
    return _text.distinct_contexts(token_size, 4, tokens, int32(*ends), context_length, vocab_size, step)


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
