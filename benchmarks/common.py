"""What every `bench_*.py` shares: the form of a measurement, and what it could take at best.

A benchmark is a pytest function `test_*(benchmark, implementation)`, parametrised with `implementations`, that ends in
one call of `measure`. `python -m benchmarks` runs all files several times over, so that implementations alternate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from charlm.benchmark import sgemm_flops

IMPLEMENTATIONS = ("charlm", "eager", "compile")
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)

# Repetitions of what a floor is made of.
_FLOOR_REPEATS = 7


def measure(benchmark: Any, workload: str, step: Callable[[], object], *, floor: str, floor_seconds: float) -> None:
    """Times `step` after one call of it, which compiles whatever is compiled.

    Args:
        benchmark: the fixture of pytest-benchmark.
        workload: what is computed, with its sizes: the same text for every implementation.
        step: all of what is timed, such as forward and backward.
        floor: what no implementation can do without, in words.
        floor_seconds: what that takes on this machine, from `copy_seconds` or `product_seconds`.
    """
    benchmark.group = workload
    benchmark.extra_info.update(floor=floor, floor_s=floor_seconds)
    step()
    benchmark(step)


def copy_seconds(size: int) -> float:
    """The median time to read `size` bytes and write as many, by one `Tensor.copy_`."""
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.zeros_like(source)
    times = []
    for _ in range(_FLOOR_REPEATS):
        started = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def product_seconds(flops: float) -> float:
    """The time of `flops` float32 operations at the best speed of a large matrix product."""
    return flops / max(sgemm_flops() for _ in range(_FLOOR_REPEATS))
