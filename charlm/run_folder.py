"""The files in the folder of a run: how they are opened, and written so that nothing is ever lost.

A checkpoint is several files. All are written into `.saving`, flushed to disk, and committed by renaming that folder to
`.saved`; only then do they move, one rename each, to their places. A reader takes a file from `.saved` while it is
there. So whenever a save is cut off, readers find the whole old state or the whole new one, and the next save finishes
the move.

Nothing is ever written through a symbolic link in the folder: files are created new, and then renamed to their places.
Reading follows links to files, so that a folder may be made of links into a store, but reads regular files only.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_SAVING = ".saving"
_SAVED = ".saved"


class CheckpointError(ValueError):
    """A file of a run is missing, damaged, foreign, or newer than this charlm."""


@contextmanager
def blamed(path: Path, fault: str) -> Iterator[None]:
    """Any ValueError in the block as a CheckpointError that names the file and what is wrong with it."""
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}{fault}: {error}") from error


def commit(run_dir: Path, files: Mapping[str, Iterable[bytes]]) -> None:
    """Writes all the files, or, where anything fails, none of them: what was there before is there still."""
    publish(run_dir)
    saving, saved = run_dir / _SAVING, run_dir / _SAVED
    remove(saving)
    # What is there now is no committed save.
    remove(saved)
    try:
        saving.mkdir()
        for name, pieces in files.items():
            write_new(saving / name, pieces)
        _sync_folder(saving)
        os.rename(saving, saved)
    except Exception:
        # A full disk, for one, should not be left full of what is of no use.
        remove(saving)
        raise
    _sync_folder(run_dir)
    publish(run_dir)


def publish(run_dir: Path) -> None:
    """Moves the files of a committed save to their places: also one that was cut off in between."""
    saved = run_dir / _SAVED
    if not _is_folder(saved):
        return
    for path in sorted(saved.iterdir()):
        os.replace(path, run_dir / path.name)
    _sync_folder(run_dir)
    saved.rmdir()


def open_file(run_dir: Path, name: str, kind: str = "run") -> tuple[io.FileIO, int]:
    """A file of a checkpoint, to read, and its size.

    Args:
        run_dir: the folder.
        name: of the file.
        kind: what the folder should be of, for messages.

    Raises:
        CheckpointError: there is none, or it is not a regular file.
    """
    # A save in another process may move the file between the two attempts, but never away from its place.
    for path in _places(run_dir, name):
        try:
            return open_regular(path)
        except FileNotFoundError:
            continue
        except NotADirectoryError as error:
            raise CheckpointError(f"{run_dir} is not a {kind} folder: it is a file") from error
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir} is not a {kind} folder: no such folder")
    raise CheckpointError(f"{run_dir} is not a {kind} folder, or is incomplete: it has no {name}")


def has_file(run_dir: Path, name: str) -> bool:
    """Whether a folder has this file of a checkpoint, of whatever kind it is."""
    return any(os.path.lexists(path) for path in _places(run_dir, name))


def place(run_dir: Path, name: str) -> Path:
    """Where a file of a checkpoint is, or would be."""
    return next((path for path in _places(run_dir, name) if os.path.lexists(path)), run_dir / name)


def is_unused(run_dir: Path) -> bool:
    """Whether a folder has nothing in it, or at most what is left of a first save that was cut off."""
    return set(os.listdir(run_dir)) <= {_SAVING}


def discard_save(run_dir: Path, names: Iterable[str]) -> None:
    """Removes a checkpoint of the files `names`, and all that is left of a save."""
    for name in (*names, _SAVED, _SAVING):
        remove(run_dir / name)


def open_regular(path: Path) -> tuple[io.FileIO, int]:
    """A regular file, to read, and its size.

    Raises:
        ValueError: it is something else, such as a device or a pipe, which may have no end or never begin.
        OSError: it cannot be opened.
    """
    # A pipe without a writer is opened at once, and found to be one.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        return io.FileIO(descriptor, "rb"), status.st_size
    except BaseException:
        os.close(descriptor)
        raise


def write_new(path: Path, pieces: Iterable[bytes]) -> None:
    """Creates a file with this content, on the disk when it returns; what had that name is removed, not written to."""
    if os.path.lexists(path):
        os.unlink(path)
    _write(path, os.O_CREAT | os.O_EXCL, pieces)


def append(path: Path, content: bytes) -> None:
    """Appends to a file, on the disk when it returns; creates it. OSError if it is a symbolic link."""
    _write(path, os.O_CREAT | os.O_APPEND, [content])


def replace(path: Path, pieces: Iterable[bytes]) -> None:
    """Puts a file with this content in the place of the one that is there, atomically, and not through a link."""
    temporary = path.with_name(f".{path.name}.saving")
    try:
        write_new(temporary, pieces)
        os.replace(temporary, path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it; nothing if it is not there."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Puts on the disk which files a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, flags: int, pieces: Iterable[bytes]) -> None:
    try:
        # Without blocking: what has the name may be a pipe.
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o666)
        with open(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is not None:
            raise
        # A full disk, for one, does not say which file it was.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _places(run_dir: Path, name: str) -> list[Path]:
    """Where a file of a checkpoint may be, the newer place first."""
    saved = run_dir / _SAVED
    return [saved / name, run_dir / name] if _is_folder(saved) else [run_dir / name]


def _is_folder(path: Path) -> bool:
    """Whether it is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()
