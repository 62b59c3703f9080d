"""The folder that one process alone writes into while it trains: as it is, or new and removed again on failure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from charlm import run_folder
from charlm.interrupts import deferred_interrupt
from charlm.run_folder import CheckpointError
from charlm.run_lock import Claim


class ClaimedFolder:
    """Nothing at first; then what `take` or `take_new` got, until `release` or `abandon`.

    Args:
        kind: what is in it, "run" or "sweep", for messages.
        file: the file that makes a folder one of that kind.
        discard: removes from a folder what was written there.
    """

    def __init__(self, kind: str, file: str, discard: Callable[[Path], None]) -> None:
        self._kind = kind
        self._file = file
        self._discard = discard
        self._lock: Claim | None = None
        self._new: Path | None = None

    def take(self, folder: Path) -> None:
        """Takes an existing folder; CheckpointError if it is none, RunInUseError if it is taken."""
        if not folder.is_dir():
            fault = "it is a file" if folder.exists() else "no such folder"
            raise CheckpointError(f"{folder} is not a {self._kind} folder: {fault}")
        self._lock = Claim(folder, create=False)
        run_folder.publish(folder)

    def take_new(self, folder: Path) -> None:
        """Takes a folder for something new, and creates it; ValueError where that would overwrite something."""
        argument = f"{self._kind}_dir"
        try:
            self._lock = Claim(folder, create=True)
        except NotADirectoryError as error:
            if not folder.exists():  # what is to be its parent is a file
                raise
            raise ValueError(f"{folder} is a file: choose another {argument}") from error
        if run_folder.has_file(folder, self._file):
            raise ValueError(f"{folder} holds a {self._kind} already: resume it, or choose another {argument}")
        if not run_folder.is_unused(folder):
            raise ValueError(f"{folder} is not empty: choose another {argument}")
        self._new = folder

    def abandon(self) -> None:
        """Removes what there is of something new, and the folders that were created for it; releases it."""
        if self._lock is None:
            return
        with deferred_interrupt():
            if self._new is not None:
                self._discard(self._new)
            self._lock.abandon()

    def release(self) -> None:
        """Lets other processes write into the folder."""
        if self._lock is not None:
            self._lock.release()
