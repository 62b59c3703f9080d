"""`charlm train`: options to a configuration, and a run from its start or its last checkpoint to its end."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from typer import Option

from charlm.cli import completion, text_options, training_options
from charlm.cli.configurations import check_texts, configuration, given_options
from charlm.cli.console import hint_at_smoothing, losses_shown, next_commands, program, progress, show
from charlm.cli.options import file_name, flag
from charlm.cli.reading import reading
from charlm.interrupts import deferred_interrupt, exit_code, termination_as_interrupt

if TYPE_CHECKING:
    from charlm.distributed import Processes
    from charlm.training_run import TrainingRun

OnRecord = Callable[[Mapping[str, Any]], None]


def train(
    context: typer.Context,
    path: training_options.Path = None,
    out: Annotated[
        str | None,
        Option(
            parser=file_name,
            metavar="RUN",
            help="Folder of the new run (default: runs/NAME_OF_FILE).",
            rich_help_panel=training_options.RUN,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        Option(
            parser=file_name,
            metavar="RUN",
            help="Continue this run.",
            autocompletion=completion.runs,
            rich_help_panel=training_options.RUN,
        ),
    ] = None,
    checkpoint_every: training_options.CheckpointEvery = None,
    quiet: training_options.Quiet = False,
    tensorboard: Annotated[
        str | None,
        Option(
            parser=file_name,
            metavar="DIR",
            help="Write losses and learning rate for TensorBoard; needs charlm\\[tensorboard].",
            rich_help_panel=training_options.RUN,
        ),
    ] = None,
    preset: training_options.Preset = None,
    seed: training_options.Seed = None,
    backend: training_options.Backend = None,
    device: training_options.Device = None,
    model: training_options.Model = None,
    context_length: training_options.ContextLength = None,
    embedding_dim: training_options.EmbeddingDim = None,
    hidden_dim: training_options.HiddenDim = None,
    direct: training_options.Direct = None,
    softcap: training_options.Softcap = None,
    smoothing: Annotated[
        float | None, Option(help="Added to every count.", rich_help_panel=training_options.MODEL)
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
    steps: training_options.Steps = None,
    batch_size: training_options.BatchSize = None,
    optimizer: training_options.Optimizer = None,
    learning_rate: training_options.LearningRate = None,
    momentum: training_options.Momentum = None,
    betas: training_options.Betas = None,
    eps: training_options.Eps = None,
    weight_decay: training_options.WeightDecay = None,
    schedule: training_options.Schedule = None,
    warmup_steps: training_options.WarmupSteps = None,
    milestones: training_options.Milestones = None,
    decay_factor: training_options.DecayFactor = None,
    max_grad_norm: training_options.MaxGradNorm = None,
) -> None:
    """Train a model and keep it in a run folder; without FILE, on the given names of the United States.

    Under `torchrun --nproc-per-node N -m charlm train ...` N processes share every batch and train the same model.
    Options that are not given are those of the preset. Ctrl-C, or SIGTERM, saves the run and says how to continue it.
    """
    from charlm import distributed
    from charlm.configuration import KEPT_TEXTS
    from charlm.training_run import TrainingRun

    options = given_options(context.params)
    if tensorboard is not None:
        from charlm.tensorboard import check_folder

        check_folder(tensorboard)
    with termination_as_interrupt(), distributed.joined() as processes:
        check_texts([options[name] for name in KEPT_TEXTS if name in options], resume is not None, processes.size)
        if resume is None:
            own = (("checkpoint_every", checkpoint_every), ("tensorboard", tensorboard))
            given = [*options, *(name for name, value in own if value is not None)]
            with reading(quiet=quiet or not processes.is_first) as on_read:
                run = TrainingRun.start(configuration(preset, options, given), out, on_read)
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


def _check_changeable(given: Collection[str]) -> None:
    from charlm.training_run import CHANGEABLE

    fixed = sorted(set(given) - set(CHANGEABLE))
    if fixed:
        *some, last = map(flag, CHANGEABLE)
        raise ValueError(
            f"{', '.join(map(flag, fixed))} cannot change when a run is resumed; only {', '.join(some)} and {last} can"
        )


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
