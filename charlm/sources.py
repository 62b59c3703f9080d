"""The text that a path leads to: that of a file, or what comes out of a pipe or standard input until its end.

A text is read in pieces, as often as it is needed, so that no copy of a large file is in memory.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from charlm._rules import check, check_type, shown
from charlm._text_extension import _text

# How standard input is called; the second is only one where the system has it.
STANDARD_INPUT = ("-", "/dev/stdin")

# Bytes read at a time: what is done with them finds them in the processor's cache.
_PIECE_BYTES = 1 << 18

_KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
# The first fits what the second begins with.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass
class Source:
    """A text.

    Attributes:
        path: where it is from, for messages.
        name: of the file, without folder and ending; "stdin" or "pipe" where there is none.
        is_file: whether it can be read again by its path.
        encoding: as it was given.
        content: the bytes that were read, of what is not read again.
        size: in bytes.
        is_empty: whether the text that was read has no character.
    """

    path: str
    name: str
    is_file: bool
    encoding: str | None
    content: bytes | None
    size: int
    is_empty: bool = True
    _file: io.FileIO | None = None
    _state: tuple[int, int] | None = None
    _reader: _text.TextReader | None = field(default=None, repr=False)
    _piece: bytes = field(default=b"", repr=False)

    def pieces(self, cuts: str, on_read: Callable[[int], None] | None = None) -> Iterator[bytes]:
        """The text in UTF-8, without byte order mark, and with "\\n" at the end of lines.

        Args:
            cuts: ASCII characters after which a piece may end; "" is any character. The last piece ends with the text.
            on_read: called with the number of bytes that were read since the last call.

        Raises:
            ValueError: it is not text in its encoding, or the file has changed since it was opened.
        """
        reader = self._reader = _text.TextReader(cuts)
        for data, last in self._decoded(on_read):
            try:
                piece = reader.read(data, last)
            except _text.NotText as error:
                raise ValueError(self._not_text(*error.args)) from None
            if piece:
                self._piece, self.is_empty = piece, False
                yield piece

    def bytes_in_pieces(self, cuts: str, on_read: Callable[[int], None] | None = None) -> Iterator[bytes]:
        """The bytes as they are; arguments and errors as of `pieces`."""
        rest = b""
        for data in self._read(on_read):
            self.is_empty = False
            if cuts:
                cut = data.rfind(cuts.encode()) + 1
                data, rest = (rest + data[:cut], data[cut:]) if cut else (b"", rest + data)
            if data:
                yield bytes(data)
        if rest:
            yield rest

    def locate(self, offset: int) -> str:
        """The place of the character at a byte offset of the piece that was read last."""
        assert self._reader is not None
        before = self._piece[:offset]
        line = self._reader.line + before.count(b"\n")
        last = before[before.rfind(b"\n") + 1 :].decode()
        column = len(last) + (self._reader.column if line == self._reader.line else 1)
        return f"{self.path}, line {line}, column {column}"

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()

    def changed(self) -> ValueError:
        """The error of a file that others write to."""
        return ValueError(f"{self.path} has changed while it was read")

    def _decoded(self, on_read: Callable[[int], None] | None) -> Iterator[tuple[bytes, bool]]:
        """The text in UTF-8, and whether that is the end of it."""
        decoder, codec, read = None, self._codec(), 0
        if codec is not None:
            decoder = codecs.getincrementaldecoder(codec)()
        for data in self._read(on_read):
            read += len(data)
            if decoder is not None:
                try:
                    text = decoder.decode(data)
                except UnicodeError as error:
                    raise ValueError(self._not_decoded(error, decoder, data, read)) from None
                data = self._encoded(text)
            yield data, False
        if decoder is not None:
            try:
                yield self._encoded(decoder.decode(b"", True)), False
            except UnicodeError as error:
                raise ValueError(self._not_decoded(error, decoder, b"", read)) from None
        yield b"", True

    def _codec(self) -> str | None:
        """What decodes the text; None for UTF-8, which nothing must."""
        if self.encoding is not None:
            codec = codecs.lookup(self.encoding).name
            return None if codec in ("utf-8", "utf-8-sig") else codec
        beginning = self._beginning()
        return next((codec for mark, codec in _BYTE_ORDER_MARKS if beginning.startswith(mark)), None)

    def _beginning(self) -> bytes:
        if self._file is None:
            return (self.content or b"")[:4]
        self._file.seek(0)
        return self._file.read(4) or b""

    def _read(self, on_read: Callable[[int], None] | None) -> Iterator[bytes]:
        on_read = on_read or (lambda size: None)
        if self._file is None:
            content = self.content or b""
            for start in range(0, len(content), _PIECE_BYTES):
                data = content[start : start + _PIECE_BYTES]
                yield data
                on_read(len(data))
            return
        self._check_unchanged()
        self._file.seek(0)
        while data := self._read_some():
            yield data
            on_read(len(data))
        self._check_unchanged()

    def _read_some(self) -> bytes:
        assert self._file is not None
        try:
            data: bytes | None = self._file.read(_PIECE_BYTES)
        except OSError as error:
            # Reading says no more than what went wrong.
            raise OSError(error.errno, error.strerror or str(error), self.path) from None
        if data is None:
            # Some of what the system shows as files waits for more to come.
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), self.path)
        return data

    def _check_unchanged(self) -> None:
        assert self._file is not None
        if _state(self._file) != self._state:
            raise self.changed()

    def _encoded(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            character = text[error.start]
            raise ValueError(f"{self.path} is not text: it has {character!r}, a lone surrogate") from None

    def _not_text(self, offset: int, byte: int, line: int, column: int) -> str:
        where = f"line {line}, column {column}"
        if self._codec() is not None:
            return f"{self.path} is not text: it has NUL at {where}"
        hint = "" if self.encoding else "; encoding='latin-1' or the like says what else it is"
        return f"{self.path} is not UTF-8 text: byte 0x{byte:02x} at offset {offset}, {where}{hint}"

    def _not_decoded(self, error: UnicodeError, decoder: codecs.IncrementalDecoder, data: bytes, read: int) -> str:
        fault = f"{self.path} is not {self.encoding or self._codec()} text"
        if not isinstance(error, UnicodeDecodeError):
            # Such as a text of UTF-16 that has no byte order mark.
            return f"{fault}: {error}"
        # Of bytes that the decoder had kept, and these.
        from_end = len(error.object) - error.start
        assert self._reader is not None
        piece = self._reader.read(decoder.decode(data[: max(0, len(data) - from_end)]).encode(), True)
        self._piece = piece
        _, _, where = self.locate(len(piece)).rpartition(f"{self.path}, ")
        return f"{fault}: byte 0x{error.object[error.start]:02x} at offset {read - from_end}, {where}"


def read(path: str | os.PathLike[str], encoding: str | None = None) -> Source:
    """Opens a text, or reads it to its end, however long that takes and large it is, where it is from a pipe.

    Args:
        path: of a file, or of a pipe such as the shell's `<(command)`; "-" is standard input.
        encoding: of the text; None is UTF-8, or what its byte order mark says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a device, a socket, or a pipe that nothing writes to.
    """
    check_type("path", path, str, os.PathLike)
    check("encoding", encoding, optional=True)
    name = os.fspath(path)
    check_type("path", name, str)
    if "\0" in name or not _is_utf8(name):
        raise ValueError(f"path must have a name in UTF-8, got {shown(name)}")
    if name in STANDARD_INPUT:
        content = _read_standard_input()
        return Source("standard input", "stdin", False, encoding, content, len(content))
    unnamed = re.fullmatch(r"/dev/fd/\d+|/proc/[^/]+/fd/\d+", name)
    short = "pipe" if unnamed else Path(name).stem
    try:
        file, read_content, is_file = _open(name)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), name) from None
    if file is not None:
        state = _state(file)
        return Source(name, short, True, encoding, None, state[0], _file=file, _state=state)
    return Source(name, short, is_file, encoding, read_content, len(read_content or b""))


def _open(path: str) -> tuple[io.FileIO | None, bytes | None, bool]:
    """A file, or what was read where it cannot be read as often as one likes; and whether it is a file all the same."""
    # A device is not even opened: that may do something.
    _check_kind(path, os.stat(path).st_mode)
    # With O_NONBLOCK a pipe without a writer opens, and reading from it says so.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = io.FileIO(descriptor, "rb")
    try:
        status = os.fstat(descriptor)
        _check_kind(path, status.st_mode)
        is_file = not stat.S_ISFIFO(status.st_mode)
        if not is_file:
            # None where a writer has yet to say something.
            begin = file.read(io.DEFAULT_BUFFER_SIZE)
            if begin == b"":
                raise ValueError(f"{path} is a pipe that nothing writes to")
            os.set_blocking(descriptor, True)
            content = (begin or b"") + file.readall()
        elif status.st_size > 0:
            return file, None, True
        else:
            # Some of what the system shows as files has no size, and may be another at each reading.
            content = file.readall()
            if content is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
    except BaseException:
        file.close()
        raise
    file.close()
    return None, content, is_file


def _state(file: io.FileIO) -> tuple[int, int]:
    """What changes when somebody writes to a file: its size, and when that was."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    try:
        status = os.fstat(sys.stdin.fileno())
    except (OSError, ValueError):
        # It is not that of the process, but one that a program has put into its place.
        pass
    else:
        if not sys.stdin.isatty():
            _check_kind("standard input", status.st_mode, allowed=stat.S_IFSOCK)
    binary = getattr(sys.stdin, "buffer", None)
    content: bytes = sys.stdin.read().encode() if binary is None else binary.read()
    return content


def _check_kind(path: str, mode: int, allowed: int = 0) -> None:
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if kind in _KINDS and kind != allowed:
        raise ValueError(f"{path} is {_KINDS[kind]}, not a file or a pipe")


def _is_utf8(name: str) -> bool:
    """Whether what Python has decoded was UTF-8: it leaves other bytes as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
