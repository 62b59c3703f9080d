"""What this machine can do at best, and what that makes of the least work that a computation can be."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from charlm.benchmark import product_rate

_REPEATS = 7
_SLOW_SECONDS = 1.0  # no more repetitions after so long


@dataclass(frozen=True)
class Floor:
    """The work that no implementation can do without.

    Attributes:
        words: what it is.
        moved_bytes: read and written, both counted.
        flops: floating-point operations in products of matrices.
    """

    words: str
    moved_bytes: int = 0
    flops: int = 0

    def seconds(self, rate: float) -> float:
        """The bytes at the speed of a copy of as many, then the operations, `rate` of them a second."""
        return (copy_seconds(self.moved_bytes // 2) if self.moved_bytes else 0.0) + self.flops / rate


def copy_seconds(size: int) -> float:
    """The least time to read `size` bytes and write as many, by one `Tensor.copy_`; in the cache if they fit there."""
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.zeros_like(source)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started)
    return min(times)


def best_product_rate(dtype: torch.dtype) -> float:
    """Operations a second of the fastest of several products of matrices."""
    best, started = 0.0, time.perf_counter()
    for _ in range(_REPEATS):
        best = max(best, product_rate(dtype))
        if time.perf_counter() - started > _SLOW_SECONDS:  # float16, where the processor has no instructions for it
            break
    return best
