"""What was printed, in one file that is written anew as steps end."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

# Of what a file has at its beginning and at its end: a thousand failures say no more than a hundred.
_KEPT_BYTES = 1 << 19


class Logs:
    """A folder for what is printed, and the file that it is packed into.

    Args:
        path: of the file; what it has of an earlier run is kept in it, in folders by the number of the run.
        keeps: whether there is such a run that this one goes on with.
    """

    def __init__(self, path: Path, *, keeps: bool) -> None:
        self._path = path
        self._earlier = _read(path) if keeps and path.exists() else {}
        self._number = 1 + max((int(name.partition("/")[0]) for name in self._earlier), default=0)
        self.folder = Path(tempfile.mkdtemp(prefix="charlm-gpu-"))

    def pack(self) -> None:
        files = dict(self._earlier)
        for path in sorted(self.folder.glob("*.log")):
            files[f"{self._number}/{path.name}"] = _shortened(path)
        temporary = self._path.with_suffix(".tmp")
        with tarfile.open(temporary, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        os.replace(temporary, self._path)

    def close(self) -> None:
        self.pack()
        shutil.rmtree(self.folder)


def _read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in files.items() if file is not None}


def _shortened(path: Path) -> bytes:
    content = path.read_bytes()
    left_out = len(content) - 2 * _KEPT_BYTES
    if left_out <= 0:
        return content
    note = f"\n... {left_out:,} bytes are left out ...\n".encode()
    return content[:_KEPT_BYTES] + note + content[-_KEPT_BYTES:]
