"""What every `bench_*.py` shares: the form of a measurement.

A benchmark is a pytest function `test_*(benchmark, implementation)`, parametrised with `implementations`, that ends in
one call of `measure`. `python -m benchmarks` runs all files several times over, so that implementations alternate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

IMPLEMENTATIONS = ("charlm", "eager", "compile")
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def measure(benchmark: Any, workload: str, step: Callable[[], object], *, floor: str, floor_seconds: float) -> None:
    """Times `step` after one call of it, which compiles whatever is compiled.

    Args:
        benchmark: the fixture of pytest-benchmark.
        workload: what is computed, with its sizes: the same text for every implementation.
        step: all of what is timed, such as forward and backward.
        floor: what no implementation can do without, in words.
        floor_seconds: what that takes on this machine, such as from `ceilings.Floor`.
    """
    benchmark.group = workload
    benchmark.extra_info.update(floor=floor, floor_s=floor_seconds)
    step()
    benchmark(step)
