"""`charlm eval`: the losses of a run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from charlm.cli import completion
from charlm.cli.console import hint_at_smoothing, losses_shown, measures, show
from charlm.cli.options import Run, file_name

if TYPE_CHECKING:
    from charlm.splits import Split

_SPLITS = ("train", "dev", "test", "all")


def evaluate(
    run: Run,
    path: Annotated[
        str | None,
        Argument(metavar="FILE", parser=file_name, help="Text, - for standard input (default: the run's own data)."),
    ] = None,
    part: Annotated[
        str | None,
        Option(
            "--split",
            metavar="NAME",
            help=f"Measure this one: {', '.join(_SPLITS[:-1])} or {_SPLITS[-1]} (default: the first three).",
            autocompletion=completion.words(_SPLITS),
        ),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON; a measure that is infinite is null.")] = False,
) -> None:
    """Measure the loss per character, or word, in nats (nll), as perplexity, and in bits.

    A FILE is read as the run's own data was, and split so too; of a run with a file for each of train, dev and test, it
    is split at random. With --split all it may be as short as one line.
    """
    if part is not None and part not in _SPLITS:
        raise ValueError(f"--split must be one of {', '.join(_SPLITS)}, got {part!r}")
    from charlm import checkpoint
    from charlm.data import TooFewLinesError
    from charlm.evaluation import evaluate as mean_nll

    loaded = checkpoint.load(run)
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
    unit = loaded.vocabulary.tokens_are.removesuffix("s")
    if as_json:
        typer.echo(json.dumps({name: _json_numbers(measures(nll, unit)) for name, nll in losses.items()}))
    else:
        show(losses_shown(losses, unit))
    if hint := hint_at_smoothing(loaded.model, losses):
        show(hint, err=True)


def _json_numbers(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
