"""Runs on disk from Python: those of the command line, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from charlm import PRESETS, TrainingConfig, TrainingRun, checkpoint

FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "metrics.jsonl")


@pytest.fixture
def config(names: Path) -> TrainingConfig:
    return replace(PRESETS["bigram"], path=str(names), steps=6, backend="eager")


def test_a_run_is_that_of_the_command_line(run_charlm: CommandLine, names: Path, config: TrainingConfig) -> None:
    reported = []
    with TrainingRun.start(config, "python") as run:
        run.run(checkpoint_every=3, on_progress=lambda step, loss: reported.append(step))
        losses = run.losses()
    options = ("--model", "bigram", "--backend", "eager", "--checkpoint-every", 3, "--out", "command")
    run_charlm.output("train", names, *options, "--steps", 6)
    for name in FILES:
        assert Path("python", name).read_bytes() == Path("command", name).read_bytes()
    assert reported[-1] == 6
    assert losses["dev"] == checkpoint.read_metrics("python")[-1]["dev"]

    with TrainingRun.resume("python", steps=8) as run:
        assert run.step == 6
        run.run()
    run_charlm.output("train", "--resume", "command", "--steps", 8)
    for name in FILES:
        assert Path("python", name).read_bytes() == Path("command", name).read_bytes()


def test_a_folder_is_named_after_the_data(run_charlm: CommandLine, config: TrainingConfig) -> None:
    with TrainingRun.start(config) as run:
        assert run.run_dir == Path("runs/names")
    assert checkpoint.load("runs/names").step == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda run: TrainingRun.start(run.config, "run"),
            "^run holds a run already: resume it, or choose another",
        ),
        (
            lambda run: TrainingRun.resume("run", eps=1.0),
            "^eps cannot change when a run is resumed; only path, dev, test, steps, backend, device can$",
        ),
        (lambda run: run.run(checkpoint_every=0), "^checkpoint_every must be a positive integer or None, got 0$"),
    ],
)
def test_bad_arguments_are_named(run_charlm: CommandLine, config: TrainingConfig, call: Any, message: str) -> None:
    with TrainingRun.start(config, "run") as run:
        pass
    with pytest.raises(ValueError, match=message):
        call(run)
