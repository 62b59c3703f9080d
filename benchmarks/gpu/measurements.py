"""The measurements of all ops, in the order in which they say most where time runs out; then training, compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, zip_longest
from typing import TypeVar

from benchmarks.gpu import (
    cross_entropy,
    embedding_linear,
    linear_cross_entropy,
    linear_log_probs,
    measure,
    mlp_cross_entropy,
    training,
)
from benchmarks.gpu.results import OURS
from benchmarks.gpu.task import Task

T = TypeVar("T")

OPS = {
    "cross_entropy": cross_entropy.workloads,
    "linear_cross_entropy": linear_cross_entropy.workloads,
    "linear_log_probs": linear_log_probs.workloads,
    "embedding_linear": embedding_linear.workloads,
    "mlp_cross_entropy": mlp_cross_entropy.workloads,
}
COMPILED = ("compile",)
# Of other projects.
PEERS = ("liger", "cce", "cce unfiltered", "quack")


def ours_and_eager() -> Iterator[tuple[str, Task]]:
    return _tasks((*OURS, "eager"))


def peers() -> Iterator[tuple[str, Task]]:
    return _tasks(PEERS)


def compiled() -> Iterator[tuple[str, Task]]:
    for part, task in _tasks(COMPILED):
        yield part, task
    for preset in training.PRESETS:
        for task in training.tasks(preset, COMPILED):
            yield "training", task


def spread(items: Sequence[T]) -> list[T]:
    """The first, the last, the one in the middle, those in the middle of what is between these, and so on."""
    order = [0, len(items) - 1]
    pieces = [(0, len(items) - 1)]
    while pieces:
        low, high = pieces.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            pieces += [(low, middle), (middle, high)]
    return [items[i] for i in dict.fromkeys(order)]


def _tasks(implementations: Sequence[str]) -> Iterator[tuple[str, Task]]:
    """Of each op in turn a workload, until there are no more; what a workload holds is let go of with its last task."""
    groups = {
        part: [partial(measure.tasks, workload, implementations) for workload in spread(list(workloads()))]
        for part, workloads in OPS.items()
    }
    columns: list[list[tuple[str, Callable[[], Iterator[Task]]]]] = [
        [(part, group) for group in of_part] for part, of_part in groups.items()
    ]
    for turn in chain.from_iterable(zip_longest(*columns)):
        if turn is not None:
            part, group = turn
            for task in group():
                yield part, task
