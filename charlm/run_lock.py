"""Who may write into the folder of a run: one process at a time.

It holds a lock (`flock`) on the folder itself, which leaves no file behind and ends with the process, however that
ends. Reading needs no lock. On network file systems such as NFS the lock may hold between the processes of one machine
only, and where a file system has no locks there is none.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class RunInUseError(ValueError):
    """Another process, or another thread of this one, is writing into the folder."""


@dataclass
class _Held:
    """A lock that this process has."""

    descriptor: int
    owner: tuple[int, int]
    depth: int = 1


# By device and inode. A process has a lock once, and whoever has it may ask for it again.
_held: dict[tuple[int, int], _Held] = {}
_guard = threading.Lock()


class Claim:
    """A run folder that only this process writes into, until it is released or the process ends.

    Args:
        folder: taken as it is, or created with `create`.
        create: whether it may be missing.

    Raises:
        RunInUseError: somebody else writes into it.
        OSError: it cannot be opened or created.
    """

    def __init__(self, folder: Path, *, create: bool) -> None:
        self._folder = folder
        self._created: list[Path] = []
        try:
            while True:
                if create:
                    self._create()
                key = _acquire(folder)
                if key is not None:
                    break
        except BaseException:
            self._remove_created()
            raise
        self._key: tuple[int, int] | None = key

    def release(self) -> None:
        """Lets others write; a second time does nothing."""
        if self._key is not None:
            _release(self._key)
            self._key = None

    def abandon(self) -> None:
        """Removes the folders that this claim has created, as far as they are empty, and lets others write."""
        self._remove_created()
        self.release()

    def _create(self) -> None:
        missing = []
        for path in (self._folder, *self._folder.parents):
            if os.path.lexists(path):
                break
            missing.append(path)
        for path in reversed(missing):
            try:
                path.mkdir()
            except FileExistsError:  # another process was faster
                continue
            if path not in self._created:
                self._created.append(path)

    def _remove_created(self) -> None:
        for path in reversed(self._created):
            try:
                path.rmdir()
            except OSError:  # somebody uses it
                break
        self._created.clear()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The lock on an existing folder for the time of the block; RunInUseError if somebody else has it."""
    claim = Claim(folder, create=False)
    try:
        yield
    finally:
        claim.release()


def _acquire(folder: Path) -> tuple[int, int] | None:
    """The key of the lock on a folder, for `_release`; None if the folder was replaced or removed meanwhile."""
    owner = (os.getpid(), threading.get_ident())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino)
        with _guard:
            held = _held.get(key)
            if held is not None and held.owner == owner:
                held.depth += 1
                os.close(descriptor)
                return key
            _flock(descriptor, folder)
            if not _is_at(folder, key):
                os.close(descriptor)
                return None
            _held[key] = _Held(descriptor, owner)
            return key
    except BaseException:
        os.close(descriptor)
        raise


def _flock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunInUseError(f"{folder} is in use: another process is training or saving this run") from None
    except OSError:
        # A file system without locks: as it is said above, there is none then.
        return


def _is_at(folder: Path, key: tuple[int, int]) -> bool:
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return False
    return key == (status.st_dev, status.st_ino)


def _release(key: tuple[int, int]) -> None:
    with _guard:
        held = _held[key]
        held.depth -= 1
        if held.depth > 0:
            return
        del _held[key]
        if held.owner[0] == os.getpid():
            # Closing does not suffice where a child that was forked meanwhile has the descriptor too.
            fcntl.flock(held.descriptor, fcntl.LOCK_UN)
        os.close(held.descriptor)
