"""`charlm sample`, `eval` and `plot`: what can be done with a finished or unfinished run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from charlm.cli.console import loss_table, measures

_SPLITS = ("train", "dev", "test", "all")

_Run = Annotated[Path, Argument(metavar="RUN", help="Folder of a run.")]


def sample(
    run: _Run,
    n: Annotated[int, Option("-n", min=0, help="How many.")] = 10,
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
    texts = sampler.sample(
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
    for text in texts:
        typer.echo(text)


def evaluate(
    run: _Run,
    path: Annotated[Path | None, Argument(metavar="FILE", help="Text (default: the run's own data).")] = None,
    split: Annotated[
        str | None, Option(metavar="|".join(_SPLITS), help="Measure this one (default: train, dev and test).")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON; a measure that is infinite is null.")] = False,
) -> None:
    """Measure the loss per character, in nats (nll), as perplexity, and in bits.

    A FILE is read and split as the run's own data was.
    """
    if split is not None and split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    from charlm import checkpoint
    from charlm.evaluation import evaluate as mean_nll

    loaded = checkpoint.load(run, training=False)
    if path is None:
        dataset = loaded.load_data()
    else:
        dataset = replace(loaded.config, path=str(path)).load_data(loaded.vocabulary)
    names = _SPLITS[:3] if split is None else (split,)
    losses = {name: mean_nll(loaded.model, getattr(dataset, name)) for name in names}
    if as_json:
        typer.echo(json.dumps({name: _json_numbers(measures(nll)) for name, nll in losses.items()}))
    else:
        typer.echo(loss_table(losses))


def plot(
    run: _Run,
    out: Annotated[Path | None, Option(help="Folder for the pictures (default: RUN).")] = None,
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
