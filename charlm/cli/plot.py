"""`charlm plot`: pictures of a run."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

from charlm.cli.options import Run, file_name


def plot(
    run: Run,
    out: Annotated[
        str | None, Option(parser=file_name, metavar="FOLDER", help="Where the pictures go (default: RUN).")
    ] = None,
) -> None:
    """Draw the loss curve and what the model has learned, as PNG files; needs charlm\\[plot]."""
    from charlm import checkpoint, plots

    loaded = checkpoint.load(run)
    figures = plots.figures(
        loaded.model, loaded.vocabulary, checkpoint.read_metrics(run, at_most=max(loaded.step, loaded.config.steps))
    )
    for path in plots.save(figures, run if out is None else out):
        typer.echo(str(path))
