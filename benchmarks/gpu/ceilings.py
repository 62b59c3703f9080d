"""What this GPU can do at best: what the ops are measured by."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu import measure
from benchmarks.gpu.results import Entry
from benchmarks.gpu.task import Task

COPIED_BYTES = 2 << 30  # far beyond any cache
SIZE = 8192  # of the matrices


def tasks() -> Iterator[tuple[str, Task]]:
    for task in (
        Task("copy", _copy),
        Task("write", _write),
        Task("bf16 product", lambda: _product(torch.bfloat16)),
        Task("float32 product", lambda: _product(torch.float32)),
    ):
        yield "ceilings", task


def _copy() -> Entry:
    """Bytes a second, read and written."""
    source = _bytes()
    target = torch.empty_like(source)
    return {"bytes_per_s": 2 * len(source) / measure.gpu_seconds(_only(lambda: target.copy_(source)))}


def _write() -> Entry:
    target = _bytes()
    return {"bytes_per_s": len(target) / measure.gpu_seconds(_only(lambda: target.fill_(1)))}


def _product(dtype: torch.dtype) -> Entry:
    """Of random matrices: the GPU slows down with the bits that change."""
    a, b = (torch.randn(SIZE, SIZE, dtype=dtype, device=measure.DEVICE) for _ in range(2))
    product = torch.empty_like(a)
    return {"flops_per_s": 2 * SIZE**3 / measure.gpu_seconds(_only(lambda: torch.mm(a, b, out=product)))}


def _bytes() -> torch.Tensor:
    return torch.randint(256, (COPIED_BYTES,), dtype=torch.uint8, device=measure.DEVICE)


def _only(call: Callable[[], torch.Tensor]) -> measure.Step:
    return lambda: [call()]
