"""The losses of a run as TensorBoard reads them; needs the package tensorboard."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Log = Callable[[Mapping[str, Any]], None]
# The scalars, by what they are called in a record of `charlm.metrics`.
_TAGS = {"loss": "loss/train", "dev": "loss/dev", "learning_rate": "learning_rate"}


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Says what keeps `writing` from writing there, before a model is trained.

    Raises:
        ImportError: tensorboard is not installed.
        OSError: `folder` is no folder, and cannot become one.
    """
    _writer_class()
    place = Path(folder)
    try:
        found = os.stat(place)
    except FileNotFoundError:
        place = next(parent for parent in place.absolute().parents if parent.exists())
        found = os.stat(place)
    code = 0 if stat.S_ISDIR(found.st_mode) else errno.ENOTDIR
    if code == 0 and not os.access(place, os.W_OK | os.X_OK):
        code = errno.EACCES
    if code:
        raise OSError(code, os.strerror(code), str(place))


@contextmanager
def writing(folder: str | os.PathLike[str], step: int) -> Iterator[Log]:
    """Writes records to event files in `folder`, which is created.

    Events of steps after `step` that are there already, of a training that was cut off or of an earlier run, are no
    longer shown: a run that is resumed has each of its steps once.

    Args:
        folder: of one run.
        step: steps done before.

    Yields:
        A function that takes a record: "step", and any of "loss", "dev" and "learning_rate".

    Raises:
        ImportError: tensorboard is not installed.
        OSError: the folder cannot be written.
    """
    writer = _writer_class()(str(folder), purge_step=step + 1)

    def log(record: Mapping[str, Any]) -> None:
        for name, tag in _TAGS.items():
            if record.get(name) is not None:
                writer.add_scalar(tag, record[name], record["step"])

    try:
        yield log
    finally:
        writer.close()


def _writer_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("event files need tensorboard. Run: pip install tensorboard") from error
    return SummaryWriter
