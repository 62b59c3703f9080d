"""`charlm sample`, `eval` and `plot`: what can be done with a finished or unfinished run."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from charlm.cli.console import hint_at_smoothing, loss_table, measures
from charlm.cli.options import file_name

if TYPE_CHECKING:
    from charlm.splits import Split

_SPLITS = ("train", "dev", "test", "all")

_Run = Annotated[str, Argument(metavar="RUN", parser=file_name, help="Folder of a run.")]


def sample(
    run: _Run,
    n: Annotated[int, Option("-n", help="How many.")] = 10,
    temperature: Annotated[float, Option(help="Below 1 plays safe, above 1 dares; 0 is the most probable.")] = 1.0,
    top_k: Annotated[int | None, Option(help="Draw from the k most probable characters only.")] = None,
    prefix: Annotated[str, Option(help="How every sample starts.")] = "",
    seed: Annotated[int | None, Option(help="The same seed, the same samples (default: random).")] = None,
    max_length: Annotated[int, Option(help="Where a sample that does not end is cut.")] = 1000,
    stop: Annotated[
        bool, Option("--stop/--no-stop", help="End a sample at the end of a line, or go on to --max-length.")
    ] = True,
) -> None:
    """Print new names, or whatever the lines were that the run was trained on, one a line."""
    from charlm import checkpoint, sampler

    loaded = checkpoint.load(run, training=False)
    blocks = sampler.stream(
        loaded.model,
        loaded.vocabulary,
        n,
        temperature=temperature,
        top_k=top_k,
        prefix=prefix,
        seed=seed,
        max_length=max_length,
        stop=stop,
    )
    for texts in blocks:
        sys.stdout.write("".join(f"{text}\n" for text in texts))
        sys.stdout.flush()


def evaluate(
    run: _Run,
    path: Annotated[
        str | None,
        Argument(metavar="FILE", parser=file_name, help="Text, - for standard input (default: the run's own data)."),
    ] = None,
    part: Annotated[
        str | None,
        Option("--split", metavar="|".join(_SPLITS), help="Measure this one (default: train, dev and test)."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON; a measure that is infinite is null.")] = False,
) -> None:
    """Measure the loss per character, in nats (nll), as perplexity, and in bits.

    A FILE is read as the run's own data was, and split so too; of a run with a file for each of train, dev and test, it
    is split at random. With --split all it may be as short as one line.
    """
    if part is not None and part not in _SPLITS:
        raise ValueError(f"--split must be one of {', '.join(_SPLITS)}, got {part!r}")
    from charlm import checkpoint
    from charlm.data import TooFewLinesError
    from charlm.evaluation import evaluate as mean_nll

    loaded = checkpoint.load(run, training=False)
    splits: dict[str, Split]
    if path is not None and part == "all":
        splits = {part: loaded.config.load_whole(path, loaded.vocabulary)}
    else:
        if path is None:
            dataset = loaded.load_data()
        else:
            try:
                dataset = replace(loaded.config, path=path, dev=None, test=None).load_data(loaded.vocabulary)
            except TooFewLinesError as error:
                # What it says of modes is for training.
                raise ValueError(f"{str(error).partition(';')[0]}; --split all measures the whole") from None
        splits = {name: getattr(dataset, name) for name in (_SPLITS[:3] if part is None else (part,))}
    losses = {name: mean_nll(loaded.model, split) for name, split in splits.items()}
    if as_json:
        typer.echo(json.dumps({name: _json_numbers(measures(nll)) for name, nll in losses.items()}))
    else:
        typer.echo(loss_table(losses))
    if hint := hint_at_smoothing(loaded.model, losses):
        typer.echo(hint, err=True)


def plot(
    run: _Run,
    out: Annotated[
        str | None, Option(parser=file_name, metavar="FOLDER", help="Where the pictures go (default: RUN).")
    ] = None,
) -> None:
    """Draw the loss curve and what the model has learned, as PNG files; needs charlm\\[plot]."""
    from charlm import checkpoint, plots

    loaded = checkpoint.load(run, training=False)
    figures = plots.figures(
        loaded.model, loaded.vocabulary, checkpoint.read_metrics(run, at_most=max(loaded.step, loaded.config.steps))
    )
    for path in plots.save(figures, run if out is None else out):
        typer.echo(str(path))


def _json_numbers(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
