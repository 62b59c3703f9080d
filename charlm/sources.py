"""The text that a path leads to: that of a file, or what comes out of a pipe or standard input until its end."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from charlm import _text
from charlm._memory import check_memory
from charlm._rules import check_type, shown

# How standard input is called; the second is only one where the system has it.
STANDARD_INPUT = ("-", "/dev/stdin")

_KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True)
class Source:
    """A text.

    Attributes:
        path: where it is from, for messages.
        name: of the file, without folder and ending; "stdin" or "pipe" where there is none.
        text: UTF-8, with "\\n" at the end of lines.
        is_file: whether it can be read again.
    """

    path: str
    name: str
    text: bytes
    is_file: bool

    def locate(self, offset: int) -> tuple[str, str]:
        """The place of the character at a byte offset, and that character."""
        line = self.text.count(b"\n", 0, offset) + 1
        return f"{self.path}, line {line}", self.text[offset : offset + 4].decode(errors="ignore")[0]


def read(path: str | os.PathLike[str]) -> Source:
    """Reads a text to its end, however long that takes and large it is where it is from a pipe.

    Args:
        path: of a file, or of a pipe such as the shell's `<(command)`; "-" is standard input.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty or not text; or it is a device, a socket, a pipe that nothing writes to, or larger than
            memory.
    """
    check_type("path", path, str, os.PathLike)
    name = os.fspath(path)
    check_type("path", name, str)
    if "\0" in name or not _is_utf8(name):
        raise ValueError(f"path must have a name in UTF-8, got {shown(name)}")
    if name in STANDARD_INPUT:
        return Source("standard input", "stdin", _checked("standard input", _read_standard_input()), is_file=False)
    try:
        content, is_file = _read_path(name)
    except OSError as error:
        # Reading says no more than what went wrong.
        raise OSError(error.errno, error.strerror or str(error), name) from None
    unnamed = re.fullmatch(r"/dev/fd/\d+|/proc/[^/]+/fd/\d+", name)
    return Source(name, "pipe" if unnamed else Path(name).stem, _checked(name, content), is_file)


def _read_path(path: str) -> tuple[bytes, bool]:
    """What is there, and whether it is a file."""
    # A device is not even opened: that may do something.
    _check_kind(path, os.stat(path).st_mode)
    # With O_NONBLOCK a pipe without a writer opens, and reading from it says so.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        _check_kind(path, status.st_mode)
        if not stat.S_ISFIFO(status.st_mode):
            check_memory(path, status.st_size)
            content = file.readall()
            if content is None:
                # Some of what the system shows as files waits for more to come.
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
            return content, True
        # None where a writer has yet to say something.
        begin = file.read(io.DEFAULT_BUFFER_SIZE)
        if begin == b"":
            raise ValueError(f"{path} is a pipe that nothing writes to")
        os.set_blocking(descriptor, True)
        return (begin or b"") + file.readall(), False


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


def _checked(path: str, content: bytes) -> bytes:
    """The text of what was read; ValueError if it is empty or not text."""
    offset = _text.find_not_text(content)
    if offset >= 0:
        raise ValueError(f"{path} is not UTF-8 text: byte 0x{content[offset]:02x} at offset {offset}")
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content:
        raise ValueError(f"{path} is empty")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content


def _is_utf8(name: str) -> bool:
    """Whether what Python has decoded was UTF-8: it leaves other bytes as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
