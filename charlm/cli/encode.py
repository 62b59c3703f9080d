"""`charlm encode`: the tokens of a text, once for all trainings."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer
from typer import Argument, Option

from charlm.cli import text_options
from charlm.cli.console import program
from charlm.cli.options import check_together, file_name
from charlm.cli.reading import reading


def encode(
    context: typer.Context,
    path: Annotated[
        str | None,
        Argument(metavar="FILE", parser=file_name, help="Text, - for standard input (default: US given names)."),
    ] = None,
    out: Annotated[
        str | None, Option(parser=file_name, metavar="TOKENS", help="The file to write (default: FILE.tokens).")
    ] = None,
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress, only the result.")] = False,
    context_length: Annotated[
        int | None, Option(help="Of lines: characters that a model reads (default: 3).", rich_help_panel="Data")
    ] = None,
    dev: text_options.Dev = None,
    test: text_options.Test = None,
    mode: text_options.Mode = None,
    split: text_options.Split = None,
    split_seed: text_options.SplitSeed = None,
    tokens: text_options.Tokens = None,
    limit_vocab: text_options.LimitVocab = None,
    min_count: text_options.MinCount = None,
    encoding: text_options.Encoding = None,
) -> None:
    """Write the tokens of a text into a file, from which training starts at once, however large it is.

    `charlm train TOKENS` maps the file into memory, than which it may be larger; so does `charlm eval RUN TOKENS`.
    """
    from charlm import data

    others = ("path", "out", "quiet")
    given = {name: value for name, value in context.params.items() if name not in others and value is not None}
    defaults = {"mode": "lines", "split": "random", "tokens": "characters"}
    check_together([name for name in given if name != "context_length"], {**defaults, **given})
    if mode == "stream" and context_length is not None:
        raise ValueError("--context-length goes with --mode lines: a stream is for any")
    if "split_seed" in given:
        given["seed"] = given.pop("split_seed")
    out = out or f"{'names' if path is None else os.path.basename(path).partition('.')[0] or 'stdin'}.tokens"
    with reading(quiet=quiet) as on_read:
        dataset = data.encode(path, out, on_read=on_read, **given)
    vocabulary = dataset.vocabulary
    sizes = " / ".join(f"{len(part):,}" for part in (dataset.train, dataset.dev, dataset.test))
    typer.echo(f"{dataset.name}: {len(vocabulary)} {vocabulary.tokens_are}; {sizes} examples in train / dev / test")
    typer.echo(f"saved in {out}; train on it:\n  {shlex.join([*program(), 'train', out])}")
