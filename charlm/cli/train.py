"""`charlm train`: options to a configuration, and a run from its start or its last checkpoint to its end."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from typer import Option

from charlm._rules import shown
from charlm.cli import completion, text_options
from charlm.cli.console import hint_at_smoothing, losses_shown, next_commands, program, progress, show
from charlm.cli.options import (
    absolute,
    check_together,
    file_name,
    flag,
    integer_or_full,
    integers,
    is_piped,
    one_of,
    two_numbers,
)
from charlm.cli.reading import reading
from charlm.interrupts import deferred_interrupt, exit_code, termination_as_interrupt

if TYPE_CHECKING:
    from charlm.configuration import TrainingConfig
    from charlm.distributed import Processes
    from charlm.training_run import TrainingRun

OnRecord = Callable[[Mapping[str, Any]], None]

# The preset that a model has without --preset.
_PRESET_OF_MODEL = {"mlp": "fast", "bigram": "bigram", "count-bigram": "count-bigram"}

# Those of charlm.presets and charlm.backends, which wait for torch.
_PRESETS = ("fast", "best", "makemore", "eureka", "bigram", "count-bigram")
BACKENDS = ("eager", "compile", "ops", "fused")

_MODEL, _OPTIMIZATION, _RUN = "Model", "Optimization", "Run"


def train(
    context: typer.Context,
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            parser=file_name,
            help="Text, or TOKENS of charlm encode; - for standard input (default: US given names).",
        ),
    ] = None,
    out: Annotated[
        str | None,
        Option(
            parser=file_name,
            metavar="RUN",
            help="Folder of the new run (default: runs/NAME_OF_FILE).",
            rich_help_panel=_RUN,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        Option(
            parser=file_name,
            metavar="RUN",
            help="Continue this run.",
            autocompletion=completion.runs,
            rich_help_panel=_RUN,
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None, Option(help="Steps between checkpoints (default: a tenth of the run).", rich_help_panel=_RUN)
    ] = None,
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress, only the result.", rich_help_panel=_RUN)] = False,
    tensorboard: Annotated[
        str | None,
        Option(
            parser=file_name,
            metavar="DIR",
            help="Write losses and learning rate for TensorBoard; needs charlm\\[tensorboard].",
            rich_help_panel=_RUN,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        one_of(_PRESETS, "Options to start from (default: those of the model, fast for mlp)", _RUN),
    ] = None,
    seed: Annotated[int | None, Option(help="Of initial weights and batches.", rich_help_panel=_RUN)] = None,
    backend: Annotated[str | None, one_of(BACKENDS, "What computes the steps", _RUN)] = None,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...", rich_help_panel=_RUN)] = None,
    model: Annotated[str | None, one_of("model", "Counts, one layer or two", _MODEL)] = None,
    context_length: Annotated[int | None, Option(help="Characters the MLP reads.", rich_help_panel=_MODEL)] = None,
    embedding_dim: Annotated[int | None, Option(help="Size of an embedding.", rich_help_panel=_MODEL)] = None,
    hidden_dim: Annotated[int | None, Option(help="Size of the hidden layer.", rich_help_panel=_MODEL)] = None,
    direct: Annotated[
        bool | None, Option("--direct/--no-direct", help="Connect embeddings to logits.", rich_help_panel=_MODEL)
    ] = None,
    softcap: Annotated[float | None, Option(help="Bound of the logits.", rich_help_panel=_MODEL)] = None,
    smoothing: Annotated[float | None, Option(help="Added to every count.", rich_help_panel=_MODEL)] = None,
    dev: text_options.Dev = None,
    test: text_options.Test = None,
    mode: text_options.Mode = None,
    split: text_options.Split = None,
    split_seed: text_options.SplitSeed = None,
    tokens: text_options.Tokens = None,
    limit_vocab: text_options.LimitVocab = None,
    min_count: text_options.MinCount = None,
    encoding: text_options.Encoding = None,
    steps: Annotated[int | None, Option(help="Length of the whole run.", rich_help_panel=_OPTIMIZATION)] = None,
    batch_size: Annotated[
        Any,
        Option(
            parser=integer_or_full, metavar="N|full", help="Examples a step; full: all.", rich_help_panel=_OPTIMIZATION
        ),
    ] = None,
    optimizer: Annotated[str | None, one_of("optimizer", "What updates the parameters", _OPTIMIZATION)] = None,
    learning_rate: Annotated[float | None, Option(help="Base rate.", rich_help_panel=_OPTIMIZATION)] = None,
    momentum: Annotated[float | None, Option(help="Of sgd.", rich_help_panel=_OPTIMIZATION)] = None,
    betas: Annotated[
        Any, Option(parser=two_numbers, metavar="B1,B2", help="Of adamw.", rich_help_panel=_OPTIMIZATION)
    ] = None,
    eps: Annotated[float | None, Option(help="Of adamw.", rich_help_panel=_OPTIMIZATION)] = None,
    weight_decay: Annotated[float | None, Option(help="Decoupled with adamw.", rich_help_panel=_OPTIMIZATION)] = None,
    schedule: Annotated[str | None, one_of("schedule", "What becomes of the learning rate", _OPTIMIZATION)] = None,
    warmup_steps: Annotated[
        int | None, Option("--warmup", help="Steps of linear warm-up.", rich_help_panel=_OPTIMIZATION)
    ] = None,
    milestones: Annotated[
        Any,
        Option(parser=integers, metavar="S1,S2,...", help="Where 'step' decays.", rich_help_panel=_OPTIMIZATION),
    ] = None,
    decay_factor: Annotated[float | None, Option(help="Of 'step'.", rich_help_panel=_OPTIMIZATION)] = None,
    max_grad_norm: Annotated[float | None, Option(help="Clip gradients to it.", rich_help_panel=_OPTIMIZATION)] = None,
) -> None:
    """Train a model and keep it in a run folder; without FILE, on the given names of the United States.

    Under `torchrun --nproc-per-node N -m charlm train ...` N processes share every batch and train the same model.
    Options that are not given are those of the preset. Ctrl-C, or SIGTERM, saves the run and says how to continue it.
    """
    from charlm import distributed
    from charlm.configuration import KEPT_TEXTS, TrainingConfig
    from charlm.training_run import TrainingRun

    names = [field.name for field in fields(TrainingConfig)]
    options = {name: context.params[name] for name in names if context.params.get(name) is not None}
    options |= {name: absolute(options[name]) for name in KEPT_TEXTS if name in options}
    if tensorboard is not None:
        from charlm.tensorboard import check_folder

        check_folder(tensorboard)
    with termination_as_interrupt(), distributed.joined() as processes:
        _check_texts([options[name] for name in KEPT_TEXTS if name in options], resume is not None, processes)
        if resume is None:
            own = (("checkpoint_every", checkpoint_every), ("tensorboard", tensorboard))
            given = [*options, *(name for name, value in own if value is not None)]
            with reading(quiet=quiet or not processes.is_first) as on_read:
                run = TrainingRun.start(_configuration(preset, options, given), out, on_read)
        else:
            given = [*options, *(name for name, value in (("preset", preset), ("out", out)) if value is not None)]
            _check_changeable(given)
            with reading(quiet=quiet or not processes.is_first) as on_read:
                run = TrainingRun.resume(resume, on_read=on_read, **options)
        with run:
            _train(run, processes, checkpoint_every, quiet, tensorboard)


def _train(
    run: TrainingRun, processes: Processes, checkpoint_every: int | None, quiet: bool, tensorboard: str | None
) -> None:
    """Trains to the end, or to Ctrl-C, and reports: of several processes the first does."""
    report: Callable[..., None] = show if processes.is_first else _no_report
    report(_description(run))
    began, finished = time.monotonic(), run.trainer is not None and run.step == run.config.steps
    # Several processes stop together, between two steps: until then they answer each other.
    with deferred_interrupt() if processes.size > 1 else nullcontext():
        try:
            with (
                progress(run.step, run.config.steps, quiet=quiet or not processes.is_first) as on_progress,
                _event_files(tensorboard if processes.is_first else None, run.step) as on_record,
            ):
                run.run(checkpoint_every, on_progress, on_record)
        except KeyboardInterrupt as interruption:
            every = [] if checkpoint_every is None else ["--checkpoint-every", str(checkpoint_every)]
            every += [] if tensorboard is None else ["--tensorboard", tensorboard]
            command = shlex.join([*_program(), "train", "--resume", str(run.run_dir), *every])
            with deferred_interrupt():
                # A second signal, as a group of processes may get, does not cut this off.
                report(f"interrupted and saved at step {run.step:,}; continue with:\n  {command}", err=True)
            raise typer.Exit(exit_code(interruption)) from None
        seconds = time.monotonic() - began
        losses = run.losses()
    report(losses_shown(losses, run.dataset.vocabulary.tokens_are.removesuffix("s")))
    if note := _evaluated(run):
        report(note)
    if hint := hint_at_smoothing(run.model, losses):
        report(hint, err=True)
    report(next_commands(str(run.run_dir), None if finished else seconds))


def _event_files(folder: str | None, step: int) -> AbstractContextManager[OnRecord | None]:
    """What is told each record, for TensorBoard; None where that was not asked for."""
    if folder is None:
        return nullcontext()
    from charlm.tensorboard import writing

    return writing(folder, step)


def _evaluated(run: TrainingRun) -> str:
    """What losses are of, where it is not all examples."""
    if run.trainer is None:
        return ""
    steps = {name: run.trainer.evaluation_step(name) for name in ("train", "dev", "test")}
    parts = [f"1 in {step:,} examples of {name}" for name, step in steps.items() if step > 1]
    return f"measured on {', '.join(parts)}; charlm eval measures all" if parts else ""


def _no_report(message: str | Text, err: bool = False) -> None:
    """What all but the first process say."""


def _program() -> list[str]:
    """How this command was started: with processes of `torchrun`, or by itself."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return program() if processes == "1" else ["torchrun", "--nproc-per-node", processes, "-m", "charlm"]


def _configuration(preset: str | None, options: Mapping[str, Any], given: Collection[str]) -> TrainingConfig:
    """The preset, or that of the model, with the given options in place of its own; all that is `given` has effect."""
    from charlm.presets import PRESETS

    name = _PRESET_OF_MODEL[options.get("model", "mlp")] if preset is None else preset
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {shown(name)}")
    base = PRESETS[name]
    if options.get("path") is not None:
        options = {**_encoded_with(options["path"], given), **options}
    check_together(given, {**vars(base), **options})
    config = replace(base, **options)
    if config.steps < base.steps and "warmup_steps" not in options:
        # A shorter run has its share of the preset's warm-up.
        config = replace(config, warmup_steps=base.warmup_steps * config.steps // base.steps)
    return config


def _encoded_with(path: str, given: Collection[str]) -> dict[str, Any]:
    """The options that a file of tokens has decided; none of a text."""
    from charlm import data

    if not data.is_encoded(path):
        return {}
    names = ("dev", "test", "split", "split_seed", "limit_vocab", "min_count", "encoding")
    if misplaced := [name for name in names if name in given]:
        raise ValueError(
            f"{', '.join(map(flag, misplaced))} cannot be given for a file of tokens, which was split and encoded"
        )
    dataset = data.load(path)
    decided = {"mode": dataset.mode, "tokens": dataset.vocabulary.tokens_are}
    return decided if dataset.mode == "stream" else {**decided, "context_length": dataset.context_length}


def _check_changeable(given: Collection[str]) -> None:
    from charlm.training_run import CHANGEABLE

    fixed = sorted(set(given) - set(CHANGEABLE))
    if fixed:
        *some, last = map(flag, CHANGEABLE)
        raise ValueError(
            f"{', '.join(map(flag, fixed))} cannot change when a run is resumed; only {', '.join(some)} and {last} can"
        )


def _check_texts(paths: Collection[str], resuming: bool, processes: Processes) -> None:
    """What can be read only once is for one process, that starts a run and keeps it."""
    for path in filter(is_piped, paths):
        if resuming:
            raise ValueError(f"{path} is not a file: a run that is resumed has its text, or takes it from a file")
        if processes.size > 1:
            raise ValueError(f"{path} is not a file, and cannot be read by {processes.size} processes")


def _description(run: TrainingRun) -> str:
    """What is trained, on what, by whom."""
    from charlm import distributed

    dataset, config = run.dataset, run.config
    sizes = " / ".join(f"{len(split):,}" for split in (dataset.train, dataset.dev, dataset.test))
    symbols = f"{len(dataset.vocabulary)} {dataset.vocabulary.tokens_are}"
    data = f"{dataset.name}: {symbols}; {sizes} examples in train / dev / test"
    if run.trainer is None:
        return f"{data}\n{config.model}: counted, smoothing {config.smoothing:g}"
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    from_step = f" from step {run.step:,}" if run.step else ""
    processes = distributed.current().size
    together = f" in {processes} processes" if processes > 1 else ""
    return (
        f"{data}\n{config.model}: {parameters:,} parameters, {config.steps:,} steps{from_step}, "
        f"{config.optimizer}, backend {run.trainer.backend}{together}"
    )
