"""Whole training steps of the lecture's model on the GPU: loss, backward and update, by each of their makers.

fused                     charlm's backend, whichever way it takes
graph                     charlm's ops in a captured graph, as "fused" has them where its kernel is not for a model
ops                       charlm's ops, each launched
eager                     PyTorch, as a plain loop has it
eager graph               PyTorch, captured in the very graph that "graph" is: batch, loss, backward and update
compile                   PyTorch's loss and its backward under torch.compile
compile, reduce-overhead  the same in its graphs
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from functools import cache, partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.gpu import measure, populations
from benchmarks.gpu.results import OURS, Entry
from benchmarks.gpu.task import Task
from charlm.backends import BACKENDS, Backend, EagerBackend
from charlm.backends.graphed import GraphedBackend
from charlm.benchmark import WORKLOADS, elapsed_seconds, warm_up
from charlm.configuration import TrainingConfig
from charlm.data import Dataset
from charlm.trainer import Trainer

# Of charlm bench.
PRESETS = ("makemore", "eureka", "large")
REDUCE_OVERHEAD = "compile, reduce-overhead"
ROUNDS = 5
_ROUND_SECONDS = 0.1
_COMPARED_STEPS = 3
# What a step must take at most, where it was said beforehand.
_ASKED_SECONDS = {("makemore", "fused"): 10e-6}


class _GraphedEager(GraphedBackend):
    model_backend = "eager"


class _ReduceOverhead(EagerBackend):
    def _prepare(self) -> Callable[..., Tensor]:
        compiled = torch.compile(super()._prepare(), mode="reduce-overhead", dynamic=False, fullgraph=True)

        def loss(*arguments: object) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(*arguments).clone()  # the next step's is in the same memory

        return loss


MAKERS: dict[str, type[Backend]] = {
    "fused": BACKENDS["fused"],
    "graph": GraphedBackend,
    "ops": BACKENDS["ops"],
    "eager": BACKENDS["eager"],
    "eager graph": _GraphedEager,
    "compile": BACKENDS["compile"],
    REDUCE_OVERHEAD: _ReduceOverhead,
}
# What takes long to compile comes after all else.
_COMPILED = ("compile", REDUCE_OVERHEAD)


def step() -> Iterator[tuple[str, Task]]:
    """What was said beforehand first: the lecture's batch, populations, and how soon a loss is reached."""
    soon = [maker for maker in MAKERS if maker not in _COMPILED]
    first, *others = PRESETS
    for group in (
        tasks(first, soon),
        populations.tasks(),
        *(tasks(preset, soon) for preset in others),
        tasks(first, [REDUCE_OVERHEAD]),
    ):
        for task in group:
            yield "training", task


def tasks(preset: str, makers: Container[str]) -> Iterator[Task]:
    """A task for each of these makers."""
    config = WORKLOADS[preset]
    dataset = cache(config.load_data)
    reference = cache(partial(_first_losses, config, dataset))
    for maker in MAKERS:
        if maker in makers:
            asked = _ASKED_SECONDS.get((preset, maker))
            yield Task(
                f"{preset}: {maker}",
                partial(_measure, config, maker, dataset, reference),
                {
                    "workload": f"training steps of {preset}: batches of {config.batch_size:,}, {config.optimizer}",
                    "implementation": maker,
                    "rows": config.batch_size,
                    "examples": config.batch_size,
                    **({} if asked is None else {"asked_s": asked}),
                },
            )


def _trainer(config: TrainingConfig, maker: str, dataset: Dataset) -> Trainer:
    config = replace(config, backend="ops" if maker in OURS else "eager", device=measure.DEVICE)
    trainer = config.create_trainer(config.create_model(len(dataset.vocabulary)), dataset)
    # Not all makers are in the trainer's table of backends.
    trainer._backend = MAKERS[maker](trainer.model, trainer.optimizer, dataset.train, config)
    return trainer


def _first_losses(config: TrainingConfig, dataset: Callable[[], Dataset]) -> Tensor:
    return _trainer(config, "eager", dataset()).run(_COMPARED_STEPS)


def _measure(
    config: TrainingConfig, maker: str, dataset: Callable[[], Dataset], reference: Callable[[], Tensor]
) -> Entry:
    """The median time of a step among rounds of `Trainer.run`, which returns the losses and so waits for the GPU."""
    trainer = _trainer(config, maker, dataset())
    difference = measure.relative_difference([trainer.run(_COMPARED_STEPS)], [reference()])
    steps, _ = warm_up(trainer.run, _ROUND_SECONDS)
    rounds = [elapsed_seconds(trainer.run, steps) / steps for _ in range(ROUNDS)]
    return {"difference": difference, "call_s": median(rounds)}
