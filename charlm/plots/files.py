"""Figures as files."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from charlm import run_folder
from charlm._rules import check
from charlm.plots._drawing import DPI, new_figure
from charlm.plots._labels import boxes_allowed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(drawn: Mapping[str, Figure], folder: str | os.PathLike[str], *, format: str = "png") -> list[Path]:
    """Writes each figure to `folder`/<name>.<format>, creating the folder; returns the paths.

    Args:
        drawn: figures by name.
        folder: where they go.
        format: "png", "svg" or "pdf".
    """
    check("format", format)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{format}" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        write(figure, path)
    return paths


def write(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file, in the format that its ending says; the same figure is the same bytes.

    Raises:
        OSError: it cannot be written.
        ValueError: the ending is that of no format of pictures.
    """
    check_picture(path)
    import matplotlib

    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    # A file of the day it was made would be another one each day.
    dates = {"svg": "Date", "svgz": "Date", "pdf": "CreationDate", "ps": "CreationDate", "eps": "CreationDate"}
    metadata = {dates[kind]: None} if kind in dates else None
    picture = io.BytesIO()
    with boxes_allowed(), matplotlib.rc_context({"svg.hashsalt": "charlm"}):
        figure.savefig(picture, dpi=DPI, format=kind, metadata=metadata)
    run_folder.replace(path, [picture.getvalue()])


def check_picture(path: str | os.PathLike[str]) -> None:
    """Says what keeps a figure from being written to a file, before it is drawn.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: there is no such folder.
        ValueError: the ending is that of no format of pictures.
    """
    path = Path(path)
    if not is_picture(path):
        formats = new_figure(1.0, 1.0).canvas.get_supported_filetypes()
        raise ValueError(f"{path} must end in one of {', '.join(f'.{name}' for name in sorted(formats))}")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether the ending of a file is that of a format of pictures."""
    return Path(path).suffix.removeprefix(".").lower() in new_figure(1.0, 1.0).canvas.get_supported_filetypes()
