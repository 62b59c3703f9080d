"""What the lecture's model takes on the GPU as a whole: many of them at once, and one until it is as good as asked.

A model has a multiprocessor to itself: 132 models have all of an H100, and of 264 two follow each other on each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.gpu import measure
from benchmarks.gpu.results import Entry
from benchmarks.gpu.task import Task
from charlm import Population
from charlm.backends import run_together
from charlm.benchmark import elapsed_seconds, warm_up
from charlm.configuration import TrainingConfig
from charlm.presets import PRESETS

MODELS = (132, 264)
# Asked of the first of them: steps a second, of all models together.
ASKED_STEPS_PER_SECOND = 12e6
# The loss of the lecture's run with the initialisation mended, on makemore's names and in its split.
ASKED_DEV_LOSS = 2.1027
RUNS = ("fast", "makemore")
ROUNDS = 3
_ROUND_SECONDS = 0.3
_DRAWN_STEPS = 1000
_EVALUATIONS = 20
_NAMES = "CHARLM_MAKEMORE_NAMES"


def tasks() -> Iterator[Task]:
    for models in MODELS:
        yield Task(f"makemore: {models} models", partial(_train_together, models), {"models": models})
    for preset in RUNS:
        yield Task(f"{preset}: a whole run", partial(_whole_run, preset))


def _train_together(models: int) -> Entry:
    """Steps a second of all models: of the engine, on batches that are drawn, and of `Population.run`.

    Drawing them is the CPU's, from a generator for each model.
    """
    config = replace(PRESETS["makemore"], backend="fused", device=measure.DEVICE)
    population = Population.from_configs([replace(config, seed=seed) for seed in range(models)])
    alone = Population.from_configs([replace(config, seed=models - 1)])
    if not torch.equal(population.run(3)[-1], alone.run(3)[0]):
        raise ValueError("the last model has other losses than alone")
    steps, _ = warm_up(population.run, _ROUND_SECONDS)
    rounds = [elapsed_seconds(population.run, steps) / steps for _ in range(ROUNDS)]

    backends = [trainer._backend for trainer in population.trainers]
    examples = len(population.trainers[0].dataset.train)
    indices = list(torch.randint(examples, (models, _DRAWN_STEPS, int(config.batch_size))))
    rates = [torch.full((_DRAWN_STEPS,), config.learning_rate, dtype=torch.float64)] * models

    def engine() -> None:
        for outcome in run_together(backends, indices, rates):
            if isinstance(outcome, Exception):
                raise outcome
            outcome.cpu()

    engine()
    drawn = [elapsed_seconds(engine) / _DRAWN_STEPS for _ in range(ROUNDS)]
    asked = {"asked_steps_per_s": ASKED_STEPS_PER_SECOND} if models == MODELS[0] else {}
    return {
        "steps_per_s": models / median(drawn),
        **asked,
        "steps_per_s_with_drawing": models / median(rounds),
        "call_s": median(drawn),
    }


def _whole_run(preset: str) -> Entry:
    """The seconds of training until the asked dev loss, and the loss at the end; evaluation is not counted."""
    config = _on_names(replace(PRESETS[preset], backend="fused", device=measure.DEVICE))
    dataset = config.load_data()
    trainer = config.create_trainer(config.create_model(len(dataset.vocabulary)), dataset)
    seconds, entry = 0.0, Entry()
    for evaluation in range(1, _EVALUATIONS + 1):
        seconds += elapsed_seconds(trainer.run, config.steps * evaluation // _EVALUATIONS - trainer.step)
        loss = trainer.evaluate("dev")
        if loss <= ASKED_DEV_LOSS and "seconds_to_asked" not in entry:
            entry["seconds_to_asked"] = seconds
    return {
        "data": Path(config.path).name if config.path else "the embedded names",
        "asked_dev_loss": ASKED_DEV_LOSS,
        **entry,
        "dev_loss": loss,
        "steps": config.steps,
        "seconds_of_training": seconds,
    }


def _on_names(config: TrainingConfig) -> TrainingConfig:
    """On makemore's names, where the environment says where they are; on the embedded ones otherwise."""
    return replace(config, path=os.environ[_NAMES], split="makemore") if _NAMES in os.environ else config
