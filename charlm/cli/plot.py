"""`charlm plot`: pictures of runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from charlm.cli import completion
from charlm.cli.options import file_name, one_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the figures show that need the data of the run; its file may be large, or gone.
_OF_DATA = ("activations", "gradients")
_PICTURES = ("loss", "embedding", "counts", "probabilities", *_OF_DATA, "next")

_DRAWN, _NEXT, _FILES = "What is drawn", "What comes next", "Files"


def plot(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            parser=file_name,
            help="Folder of a run, or of a sweep; of several runs, the losses are drawn.",
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        str | None,
        Option(
            parser=file_name,
            metavar="FOLDER|PICTURE",
            help="Where the pictures go, or the one picture (default: RUN; of several runs, here).",
            rich_help_panel=_FILES,
        ),
    ] = None,
    only: Annotated[
        str | None,
        Option(
            metavar="NAME,...",
            help=f"Which pictures: {', '.join(_PICTURES)}.",
            autocompletion=completion.word_list(_PICTURES),
            rich_help_panel=_DRAWN,
        ),
    ] = None,
    after: Annotated[
        list[str] | None,
        Option(
            metavar="TEXT",
            help='Draw what comes next after it, such as "emm"; give it again for another text.',
            rich_help_panel=_NEXT,
        ),
    ] = None,
    temperature: Annotated[
        float | None, Option(help="Of --after: the logits are divided by it.", rich_help_panel=_NEXT)
    ] = None,
    order: Annotated[str | None, one_of("order", "Of --after, of the bars", _NEXT)] = None,
    log_steps: Annotated[
        bool, Option("--log-steps", help="A logarithmic axis for the steps.", rich_help_panel=_DRAWN)
    ] = False,
    format: Annotated[str | None, one_of("format", "Of the files (default: png)", _FILES)] = None,
) -> None:
    """Draw the loss curve and what the model has learned; needs charlm\\[plot].

    Of an MLP that is a map of the embeddings, of a bigram its table. Of several runs it is one picture of the losses.
    Of a sweep it is the loss of dev over what was tried.
    """
    from charlm import plots

    given = {"temperature": temperature, "order": order}
    if not after and (misplaced := [name for name, value in given.items() if value is not None]):
        raise ValueError(f"--{misplaced[0]} goes with --after")
    if out is not None and (os.path.isdir(out) or not plots.is_picture(out)):
        place, picture = out, None
    else:
        place, picture = None, out
    if picture is not None:
        if format is not None:
            raise ValueError(f"--format goes with a folder, not with --out {picture}, whose ending is the format")
        plots.check_picture(picture)
    options = {name: value for name, value in given.items() if value is not None}
    wanted = None if only is None else [name for name in only.split(",") if name]
    if wanted == []:
        raise ValueError(f"--only {only} names no picture")
    if len(runs) == 1 and _is_sweep(runs[0]):
        if after or only is not None or log_steps:
            wrong = "--after" if after else "--only" if only is not None else "--log-steps"
            raise ValueError(f"{wrong} goes with a run: of a sweep there is one picture")
        drawn = {"sweep": _figure_of_sweep(runs[0])}
    elif len(runs) == 1:
        drawn = _figures_of_run(runs[0], wanted, list(after or ()), log_steps, options)
    elif after or wanted not in (None, ["loss"]):
        raise ValueError(f"{'--after' if after else '--only ' + str(only)} goes with one RUN, got {len(runs)}")
    else:
        drawn = {"loss": _losses_of_runs(runs, log_steps)}
    if picture is None:
        paths = plots.save(drawn, place or (runs[0] if len(runs) == 1 else "."), format=format or "png")
    elif len(drawn) == 1:
        plots.write(next(iter(drawn.values())), picture)
        paths = [Path(picture)]
    else:
        raise ValueError(f"--out {picture} is one picture, but there are {', '.join(drawn)}: choose by --only")
    for path in paths:
        typer.echo(str(path))


def _figures_of_run(
    run: str, wanted: list[str] | None, after: list[str], log_steps: bool, options: Mapping[str, object]
) -> dict[str, Figure]:
    from charlm import checkpoint, plots

    loaded = checkpoint.load(run)
    records = checkpoint.read_metrics(run, at_most=max(loaded.step, loaded.config.steps))
    if wanted is None and after:
        wanted = ["next"]
    needs_data = any(name in plots.names(loaded.model) for name in _OF_DATA if name in (wanted or ()))
    return plots.figures(
        loaded.model,
        loaded.vocabulary,
        records,
        only=wanted,
        split=loaded.load_data().train if needs_data else None,
        after=after,
        log_steps=log_steps,
        **options,  # type: ignore[arg-type]
    )


def _is_sweep(path: str) -> bool:
    from charlm.config_json import SWEEP_FILE
    from charlm.run_folder import has_file

    return has_file(Path(path), SWEEP_FILE)


def _figure_of_sweep(path: str) -> Figure:
    from charlm import plots
    from charlm.sweep import folder

    saved = folder.load(Path(path))
    records = [result.to_dict() for result in saved.results]
    unit = saved.config.base.tokens.removesuffix("s")
    return plots.sweep_chart(saved.config.options, records, unit=unit)


def _losses_of_runs(runs: list[str], log_steps: bool) -> Figure:
    """One picture, each run by the name of its folder, or by its path where two folders have the same name."""
    from charlm import checkpoint, plots

    names = [os.path.basename(os.path.normpath(run)) for run in runs]
    records = {}
    for run, name in zip(runs, names, strict=True):
        loaded = checkpoint.load(run)
        found = checkpoint.read_metrics(run, at_most=max(loaded.step, loaded.config.steps))
        if not found:
            raise ValueError(f"{run} has no losses to draw: it was not trained in steps")
        records[name if names.count(name) == 1 else run] = found
    return plots.loss_curve(records, log_steps=log_steps)
