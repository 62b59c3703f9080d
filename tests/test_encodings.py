"""Texts as people have them: other encodings, byte order marks, line ends, and what is said where they are not text."""

from __future__ import annotations

import codecs
import re
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm import data, sources

LINES = ["zoë", "ana", "émile", "bo"]
TEXT = "\n".join(LINES)


def read(path: Path, encoding: str | None = None) -> str:
    source = sources.read(path, encoding)
    with closing(source):
        return b"".join(source.pieces("")).decode()


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "utf-7", "UTF8"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_other_encodings(tmp_path: Path, encoding: str, line_end: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(line_end.join(LINES).encode(encoding))
    assert read(path, encoding) == TEXT
    expected = tmp_path / "utf8" / "names.txt"
    expected.parent.mkdir()
    expected.write_text(TEXT)
    dataset = data.load(path, encoding=encoding)
    assert dataset.vocabulary == data.load(expected).vocabulary
    assert dataset.all.tokens.equal(data.load(expected).all.tokens)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("mark", [None, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str, mark: bytes | None) -> None:
    path = tmp_path / "names.txt"
    big_endian = {codecs.BOM_UTF16_BE: "utf-16-be", codecs.BOM_UTF32_BE: "utf-32-be"}
    path.write_bytes(TEXT.encode(encoding) if mark is None else mark + TEXT.encode(big_endian[mark]))
    assert read(path) == TEXT
    assert data.load(path).vocabulary == data.Vocabulary.from_text(TEXT.replace("\n", ""))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=50), st.integers(1, 7))
def test_pieces_of_any_size_are_the_whole_text(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    for encoding in ("utf-8", "utf-16-be", "utf-8-sig"):
        path.write_bytes(("x" + text).encode(encoding))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "_PIECE_BYTES", size)
            assert read(path, encoding) == "x" + text


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"ab\nc\x81d", "cp1252", "is not cp1252 text: byte 0x81 at offset 4, line 2, column 2"),
        ("ab\r\nçd".encode(), "ascii", "is not ascii text: byte 0xc3 at offset 4, line 2, column 1"),
        ("ab\nc".encode("utf-16-le") + b"\x00\xd8a\0", "utf-16-le", "byte 0x00 at offset 8, line 2, column 2"),
        ("abc".encode("utf-16") + b"x", None, "is not utf-16 text: byte 0x78 at offset 8, line 1, column 4"),
        ("ab\nc\0d".encode("utf-16"), None, "is not text: it has NUL at line 2, column 2"),
        (
            b"zo\xe9\n",
            None,
            "byte 0xe9 at offset 2, line 1, column 3; encoding='latin-1' or the like says what else it",
        ),
        (b"zo\xe9\n", "utf-8", "is not UTF-8 text: byte 0xe9 at offset 2, line 1, column 3"),
    ],
)
def test_where_a_text_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, encoding: str | None, message: str, size: int
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    monkeypatch.setattr(sources, "_PIECE_BYTES", size)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}.*{re.escape(message)}"):
        read(path, encoding)


def test_white_space_in_lines(tmp_path: Path) -> None:
    """That at the end is dropped, non-breaking spaces too; that at the beginning, and within, is part of the line."""
    path = tmp_path / "names.txt"
    path.write_text("  ana \t\n\u00a0bo\u00a0\u00a0\nan na\r\n")
    dataset = data.load(path, split="makemore", context_length=1)
    lines = dataset.vocabulary.decode(dataset.all.tokens).strip(".").split(".")
    assert sorted(lines) == ["  ana", "an na", "\u00a0bo"]


def test_a_place_in_a_large_text(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    lines = ["zoë" * 50] * 20_000
    lines[15_000] = "zoë" * 30 + "!" + "zoë"
    path.write_text("\n".join(lines))
    for mode in ("lines", "stream"):
        vocabulary = data.Vocabulary("zoë\n" if mode == "stream" else "zoë")
        with pytest.raises(ValueError, match=r"large.txt, line 15001, column 91 has '!', which is not in the"):
            data.load(path, mode=mode, vocabulary=vocabulary)


def test_a_text_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("ana\nbo\nzoe\n")
    read = []

    def on_read(done: int, total: int) -> None:
        read.append((done, total))
        path.write_text("ana\nbo\nzoe\nmia\n")

    with pytest.raises(ValueError, match=r"names.txt has changed while it was read"):
        data.load(path, on_read=on_read)
    assert read[0] == (11, 33)


def test_how_far_reading_has_come(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("ana\nbo\nzoe\nemma\nola\n")
    for mode, times in (("lines", 3), ("stream", 2)):
        read: list[tuple[int, int]] = []
        data.load(path, mode=mode, context_length=1, on_read=lambda *how_far, r=read: r.append(how_far))
        assert read == [(20 * i, 20 * times) for i in range(1, times + 1)]
