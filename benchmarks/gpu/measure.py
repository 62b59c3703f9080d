"""How an op is measured on a GPU: its time, the memory it takes, and that it computes what eager PyTorch does."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import is_lost
from benchmarks.gpu.results import OURS, Entry
from benchmarks.gpu.task import Task

DEVICE = "cuda"

_SECONDS = 0.2  # of measuring for each number
_MOST_CALLS = 100
_FEWEST_CALLS = 3
_FLUSH_BYTES = 256 << 20  # several times the second-level cache of any GPU
_FLUSHES_PER_SECOND = 30_000  # at most: memory of 8 TB/s
_COMPARED_AT_ONCE = 1 << 26

# A call of an op, or forward and backward: the loss or output, and the gradients.
Step = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Workload:
    """The same computation by several implementations.

    Attributes:
        name: with its sizes.
        implementations: the first is the one that the others are compared with.
        create: draws the inputs; returns what makes the step of an implementation, or raises ImportError.
        facts: the sizes, such as "rows"; of what no implementation can do without, "bytes" or "flops"; the "ceiling"
            these are to be compared with, and "examples".
    """

    name: str
    implementations: Sequence[str]
    create: Callable[[], Callable[[str], Step]]
    facts: Mapping[str, Any]


def tasks(workload: Workload, implementations: Container[str]) -> Iterator[Task]:
    """A task for each of these implementations, charlm first. Inputs are drawn when the first of them runs."""
    create = cache(workload.create)
    reference = cache(partial(_reference_results, create, workload.implementations[0]))
    for name in sorted(workload.implementations, key=lambda name: name != OURS[0]):
        if name in implementations:
            yield Task(
                f"{workload.name}: {name}",
                partial(_measure, create, name, reference),
                {"workload": workload.name, "implementation": name, **workload.facts},
            )


def _reference_results(create: Callable[[], Callable[[str], Step]], name: str) -> list[Tensor]:
    try:
        return [result.detach().clone() for result in create()(name)()]
    except RuntimeError:  # such as too little memory, which says nothing of what would be compared with it
        return []


def _measure(create: Callable[[], Callable[[str], Step]], name: str, reference: Callable[[], list[Tensor]]) -> Entry:
    step = create()(name)
    entry: Entry = {}
    results = step()
    if expected := reference():
        entry["difference"] = relative_difference(results, expected)
    del results
    entry["memory_bytes"] = peak_bytes(step)
    entry["call_s"] = call_seconds(step)
    entry["median_s"] = gpu_seconds(step)
    return entry


def relative_difference(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest of ||result - expected|| / ||expected||; a sum is compared with the sum.

    Raises:
        ValueError: a result has another shape, or is infinite or NaN.
    """
    return max(_difference(result, wanted) for result, wanted in zip(results, expected, strict=True))


def _difference(result: Tensor, expected: Tensor) -> float:
    if result.dim() == 0:
        expected = expected.double().sum()
    if result.shape != expected.shape:
        raise ValueError(f"a result has shape {tuple(result.shape)}, expected {tuple(expected.shape)}")
    squared = torch.zeros(2, dtype=torch.float64, device=expected.device)
    chunks = (tensor.detach().flatten().split(_COMPARED_AT_ONCE) for tensor in (result, expected))
    for own, wanted in zip(*chunks, strict=True):
        squared[0] += (own.double() - wanted.double()).square().sum()
        squared[1] += wanted.double().square().sum()
    difference, norm = squared.sqrt().tolist()
    if not math.isfinite(difference):
        raise ValueError("a result is infinite or NaN")
    return difference / norm if norm else difference


def peak_bytes(step: Step) -> int:
    """The most memory that is allocated during a call, beyond what was before it; results count."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def call_seconds(step: Step) -> float:
    """What one of many calls takes that follow each other, Python included."""
    _, count = _warm_up(step)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def gpu_seconds(step: Step) -> float:
    """The median time of a call between two events, without Python's and with nothing of its own in the cache.

    Before each call the GPU is kept busy filling the cache with other memory, for so long that all launches are queued
    by then. It reads that memory, which leaves the cache clean: what was written there instead, up to 50 MB, the call
    would have to write back to memory in its own time, to make room.
    """
    flush = torch.zeros(_FLUSH_BYTES // 4, device=DEVICE)
    total = torch.empty((), device=DEVICE)
    enqueuing, count = _warm_up(step)
    flushes = 1 + math.ceil(min(enqueuing, 0.01) * _FLUSHES_PER_SECOND)
    events = []
    for _ in range(count):
        for _ in range(flushes):
            torch.sum(flush, 0, out=total)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return median(begin.elapsed_time(end) / 1e3 for begin, end in events)


def _warm_up(step: Step) -> tuple[float, int]:
    """How long Python is busy with a call, and how many calls to measure, after a few of them."""
    for _ in range(_FEWEST_CALLS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        enqueuing = time.perf_counter() - started
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - started
        if elapsed > _SECONDS:  # warm by now
            break
    return enqueuing, max(_FEWEST_CALLS, min(_MOST_CALLS, int(_SECONDS / elapsed)))


def is_broken() -> bool:
    """Whether the process can use the device no more."""
    return DEVICE == "cuda" and is_lost()


def release_memory() -> None:
    """Gives back to the GPU what the last task has let go of."""
    gc.collect()
    torch.cuda.empty_cache()
