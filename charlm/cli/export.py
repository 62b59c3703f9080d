"""`charlm export`: a run's model for where there is no PyTorch."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from charlm.cli.options import Run, file_name, one_of


def export(
    run: Run,
    to: Annotated[str, one_of("to", "What to write")],
    out: Annotated[
        str | None,
        Option(parser=file_name, metavar="FILE", help="Where, overwriting it (default: RUN/model.c, .onnx or .html)."),
    ] = None,
) -> None:
    """Write the model as a C program that samples, as an ONNX graph, or as a page that runs in a browser.

    c: one file of C99 that needs the C library alone. onnx: contexts in, log-probabilities out; needs the package onnx.
    html: one page with the model in it, without server or network.
    """
    from charlm import checkpoint, run_folder
    from charlm import export as exporters

    loaded = checkpoint.load(run)
    path = Path(run) / f"model.{to}" if out is None else Path(out)
    _check_place(path, to)
    if to == "c":
        content = exporters.to_c(loaded.model, loaded.vocabulary).encode()
    elif to == "onnx":
        content = exporters.to_onnx(loaded.model, loaded.vocabulary).SerializeToString()
    else:
        title = Path(run).resolve().name
        content = exporters.to_html(loaded.model, loaded.vocabulary, title=title).encode()
    run_folder.replace(path, [content])
    typer.echo(f"{path}: {len(content):,} bytes")


def _check_place(path: Path, to: str) -> None:
    """An error where no file should be put: what is overwritten is an export, not what was meant to be exported."""
    if path.suffix != f".{to}":
        raise ValueError(f"--out must end in .{to}, got {path.name!r}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
