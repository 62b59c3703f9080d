"""`charlm sweep`: many trainings at once, from their start or their last checkpoint to their end."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from charlm import search_space
from charlm._rules import RULES, Choice
from charlm.cli import completion, console, text_options, training_options
from charlm.cli.configurations import check_texts, configuration, given_options
from charlm.cli.options import check_together, file_name, flag
from charlm.cli.reading import reading
from charlm.cli.sweep_shown import sweep_progress, sweep_table
from charlm.cli.swept import swept
from charlm.interrupts import deferred_interrupt, exit_code, termination_as_interrupt

if TYPE_CHECKING:
    from charlm.sweep import Sweep, SweepConfig

_SWEEP = "Sweep"
# Rows of the table without --top.
_TOP = 10


def sweep(
    context: typer.Context,
    path: training_options.Path = None,
    trials: Annotated[
        int | None,
        Option(help="Draw so many settings at random (default: all of the lists).", rich_help_panel=_SWEEP),
    ] = None,
    draw_seed: Annotated[int | None, Option(help="Of the draws.", rich_help_panel=_SWEEP)] = None,
    seeds: Annotated[
        int | None, Option(help="Train each setting so many times, from --seed on.", rich_help_panel=_SWEEP)
    ] = None,
    halving: Annotated[
        int | None,
        Option(
            metavar="ETA",
            help="Stop all but the best 1/ETA of the models, again and again (default: none).",
            rich_help_panel=_SWEEP,
        ),
    ] = None,
    top: Annotated[
        int | None, Option(metavar="N", help=f"Rows of the table; 0: all (default: {_TOP}).", rich_help_panel=_SWEEP)
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.", rich_help_panel=_SWEEP)] = False,
    out: Annotated[
        str | None,
        Option(
            parser=file_name,
            metavar="FOLDER",
            help="Folder of the new sweep (default: runs/NAME_OF_FILE-sweep).",
            rich_help_panel=training_options.RUN,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        Option(
            parser=file_name,
            metavar="FOLDER",
            help="Continue this sweep, or show what came of it.",
            autocompletion=completion.sweeps,
            rich_help_panel=training_options.RUN,
        ),
    ] = None,
    checkpoint_every: training_options.CheckpointEvery = None,
    quiet: training_options.Quiet = False,
    preset: training_options.Preset = None,
    seed: training_options.Seed = None,
    backend: training_options.Backend = None,
    device: training_options.Device = None,
    model: training_options.Model = None,
    context_length: Annotated[Any, swept(training_options.ContextLength)] = None,
    embedding_dim: Annotated[Any, swept(training_options.EmbeddingDim)] = None,
    hidden_dim: Annotated[Any, swept(training_options.HiddenDim)] = None,
    direct: training_options.Direct = None,
    softcap: Annotated[Any, swept(training_options.Softcap)] = None,
    dev: text_options.Dev = None,
    test: text_options.Test = None,
    mode: text_options.Mode = None,
    split: text_options.Split = None,
    split_seed: text_options.SplitSeed = None,
    tokens: text_options.Tokens = None,
    limit_vocab: text_options.LimitVocab = None,
    min_count: text_options.MinCount = None,
    encoding: text_options.Encoding = None,
    steps: training_options.Steps = None,
    batch_size: Annotated[Any, swept(training_options.BatchSize)] = None,
    optimizer: Annotated[Any, swept(training_options.Optimizer)] = None,
    learning_rate: Annotated[Any, swept(training_options.LearningRate)] = None,
    momentum: Annotated[Any, swept(training_options.Momentum)] = None,
    betas: Annotated[Any, swept(training_options.Betas, separator="/")] = None,
    eps: Annotated[Any, swept(training_options.Eps)] = None,
    weight_decay: Annotated[Any, swept(training_options.WeightDecay)] = None,
    schedule: Annotated[Any, swept(training_options.Schedule)] = None,
    warmup_steps: Annotated[Any, swept(training_options.WarmupSteps)] = None,
    milestones: training_options.Milestones = None,
    decay_factor: Annotated[Any, swept(training_options.DecayFactor)] = None,
    max_grad_norm: Annotated[Any, swept(training_options.MaxGradNorm)] = None,
) -> None:
    """Train many models at once, each with other options, and keep the best.

    VALUES are one value, a list such as 0.01,0.03,0.1, or a range for --trials: log:0.001:0.3 or uniform:0:0.2.
    The best model is FOLDER/best, a run. Ctrl-C, or SIGTERM, saves the sweep and says how to continue it.
    """
    from charlm import distributed
    from charlm.configuration import KEPT_TEXTS
    from charlm.sweep import Sweep

    options = given_options(context.params)
    own = {name: context.params[name] for name in ("trials", "draw_seed", "seeds", "halving")}
    own = {name: value for name, value in own.items() if value is not None}
    quiet = quiet or as_json
    with termination_as_interrupt(), distributed.joined() as processes:
        check_texts([options[name] for name in KEPT_TEXTS if name in options], resume is not None, processes.size)
        with reading(quiet=quiet) as on_read:
            if resume is None:
                given = [*options, *(["checkpoint_every"] if checkpoint_every is not None else [])]
                running = Sweep.start(_sweep_config(preset, options, given, own), out, on_read)
            else:
                given = [*options, *own, *(name for name, value in (("preset", preset), ("out", out)) if value)]
                _check_changeable(given)
                running = Sweep.resume(resume, on_read=on_read, **options)
        with running:
            _train(running, checkpoint_every, quiet, _TOP if top is None else top, as_json)


def _train(running: Sweep, checkpoint_every: int | None, quiet: bool, top: int, as_json: bool) -> None:
    """Trains to the end, or to Ctrl-C, and reports."""
    if not as_json:
        console.show(_description(running))
    began, finished = time.monotonic(), running.finished
    try:
        with sweep_progress(len(running.config.configs), quiet=quiet) as on_progress:
            running.run(checkpoint_every, on_progress)
    except KeyboardInterrupt as interruption:
        every = [] if checkpoint_every is None else ["--checkpoint-every", str(checkpoint_every)]
        command = shlex.join([*console.program(), "sweep", "--resume", str(running.sweep_dir), *every])
        with deferred_interrupt():
            console.show(f"interrupted and saved at step {running.step:,}; continue with:\n  {command}", err=True)
        raise typer.Exit(exit_code(interruption)) from None
    seconds = time.monotonic() - began
    if as_json:
        typer.echo(json.dumps(_report(running)))
    else:
        room = console.width() if sys.stdout.isatty() else None
        console.show(sweep_table(running.settings(), running.config, top, room))
    if running.best_run is None:
        from charlm.trainer import NonFiniteLossError

        raise NonFiniteLossError(
            f"all {len(running.config.configs):,} models have diverged: lower learning_rate, or set max_grad_norm"
        )
    if not as_json:
        drawing = (("plot", str(running.sweep_dir)), "draw the sweep")
        saved = "the best model saved"
        console.show(console.next_commands(str(running.best_run), None if finished else seconds, saved, [drawing]))


def _sweep_config(
    preset: str | None, options: Mapping[str, Any], given: Collection[str], own: Mapping[str, Any]
) -> SweepConfig:
    """The sweep of the options that have several values; each setting is one that `train` would take."""
    from charlm.sweep import SweepConfig

    kinds = (list, search_space.Uniform, search_space.LogUniform)
    several = {name: options[name] for name in search_space.SWEPT if isinstance(options.get(name), kinds)}
    search_space.checked(several)
    first = {name: values[0] if isinstance(values, list) else values.low for name, values in several.items()}
    base = configuration(preset, {**options, **first}, given)
    words = {name: values for name, values in several.items() if isinstance(RULES[name], Choice)}
    for combination in itertools.product(*words.values()):
        check_together(given, {**vars(base), **dict(zip(words, combination, strict=True))})
    return SweepConfig(base=base, options=several, **own)


def _check_changeable(given: Collection[str]) -> None:
    from charlm.sweep.training import CHANGEABLE

    if fixed := sorted(set(given) - set(CHANGEABLE)):
        *some, last = map(flag, CHANGEABLE)
        changed = ", ".join(map(flag, fixed))
        raise ValueError(f"{changed} cannot change when a sweep is resumed; only {', '.join(some)} and {last} can")


def _description(running: Sweep) -> str:
    """What is tried, on what, by whom."""
    config = running.config
    names = ", ".join(flag(name).removeprefix("--") for name in config.options)
    count = len(config.settings)
    settings = f"{count:,} settings of {names}" if names else "one setting"
    seeds = f", {config.seeds} seeds each" if config.seeds > 1 else ""
    from_step = f" from step {running.step:,}" if running.step and not running.finished else ""
    lines = [f"sweep: {settings}{seeds}; {len(config.configs):,} models, {config.base.steps:,} steps{from_step}"]
    if running.dataset is not None:
        dataset = running.dataset
        sizes = " / ".join(f"{len(split):,}" for split in (dataset.train, dataset.dev, dataset.test))
        symbols = f"{len(dataset.vocabulary)} {dataset.vocabulary.tokens_are}"
        lines.insert(0, f"{dataset.name}: {symbols}; {sizes} examples in train / dev / test")
        lines[1] += f", backend {running.backend}"
    if config.rungs:
        kept = ", ".join(f"{rung.keep:,} after step {rung.step:,}" for rung in config.rungs)
        lines.append(f"halving: the best go on, {kept}")
    return "\n".join(lines)


def _report(running: Sweep) -> dict[str, Any]:
    """For a program."""
    best = running.best_run
    return {
        "folder": str(running.sweep_dir),
        "best": None if best is None else str(best),
        "models": [result.to_dict() for result in running.results()],
    }
