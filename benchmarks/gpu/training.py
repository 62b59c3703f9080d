"""Whole training steps of the lecture's model on the GPU: loss, backward and update, by each backend."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from functools import cache, partial
from statistics import median

from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.results import Entry
from benchmarks.gpu.task import Task
from charlm.benchmark import WORKLOADS, elapsed_seconds, warm_up
from charlm.configuration import TrainingConfig
from charlm.data import Dataset
from charlm.trainer import Trainer

# Of charlm bench. The backend "fused" trains on the CPU.
PRESETS = ("makemore", "eureka", "large")
BACKENDS = ("ops", "eager", "compile")
ROUNDS = 5
_ROUND_SECONDS = 0.3
_COMPARED_STEPS = 3


def tasks(preset: str, backends: Container[str]) -> Iterator[Task]:
    """A task for each of these backends."""
    config = WORKLOADS[preset]
    dataset = cache(config.load_data)
    reference = cache(partial(_first_losses, config, dataset))
    for backend in BACKENDS:
        if backend in backends:
            yield Task(
                f"{preset}: {backend}",
                partial(_measure, config, backend, dataset, reference),
                {
                    "workload": f"training steps of {preset}: batches of {config.batch_size:,}, {config.optimizer}",
                    "implementation": backend,
                    "rows": config.batch_size,
                    "examples": config.batch_size,
                },
            )


def _trainer(config: TrainingConfig, backend: str, dataset: Dataset) -> Trainer:
    config = replace(config, backend=backend, device=measure.DEVICE)
    return config.create_trainer(config.create_model(len(dataset.vocabulary)), dataset)


def _first_losses(config: TrainingConfig, dataset: Callable[[], Dataset]) -> Tensor:
    return _trainer(config, "eager", dataset()).run(_COMPARED_STEPS)


def _measure(
    config: TrainingConfig, backend: str, dataset: Callable[[], Dataset], reference: Callable[[], Tensor]
) -> Entry:
    """The median time of a step among rounds of `Trainer.run`, which returns the losses and so waits for the GPU."""
    trainer = _trainer(config, backend, dataset())
    difference = measure.relative_difference([trainer.run(_COMPARED_STEPS)], [reference()])
    steps, _ = warm_up(trainer.run, _ROUND_SECONDS)
    rounds = [elapsed_seconds(trainer.run, steps) / steps for _ in range(ROUNDS)]
    return {"difference": difference, "call_s": median(rounds)}
