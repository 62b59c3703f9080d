"""`python -m benchmarks.gpu.profiled "wide cross_entropy forward"`: one call of an op, for a profiler to look at."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from benchmarks.gpu import cross_entropy, embedding_linear, engine_checks, measure
from charlm import ops

ROWS = 1 << 20
WIDE = (8192, 32768)  # 512 MiB: beyond any cache, and soon saved and restored for each pass of the profiler
SHAPE = embedding_linear.Shape(1 << 18, 3, 27, 10, 200, torch.float32)


def main(call: str) -> None:
    CALLS[call]()


def _profile(step: Callable[[], object]) -> None:
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    step()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def _cross_entropy(rows: int, classes: int, *, backward: bool) -> None:
    logits, target = cross_entropy.inputs(rows, classes)
    logits.requires_grad_(backward)
    if not backward:
        _profile(lambda: ops.cross_entropy(logits, target, reduction="none"))
        return
    losses = ops.cross_entropy(logits, target, reduction="none")
    upstream = torch.ones_like(losses)
    _profile(lambda: torch.autograd.grad(losses, logits, upstream))


def _embedding_linear(*, backward: bool) -> None:
    ids, parameters, upstream = embedding_linear.inputs(SHAPE, backward=backward)
    if not backward:
        _profile(lambda: ops.embedding_linear(ids, *parameters))
        return
    output = ops.embedding_linear(ids, *parameters)
    _profile(lambda: torch.autograd.grad(output, parameters, upstream))


def _train_steps() -> None:
    _profile(lambda: engine_checks.train(engine_checks.CASES["sgd"], torch.float32, measure.DEVICE))


# By the names in benchmarks/gpu/profile.py.
CALLS: dict[str, Callable[[], None]] = {
    "narrow cross_entropy forward": lambda: _cross_entropy(ROWS, 27, backward=False),
    "wide cross_entropy forward": lambda: _cross_entropy(*WIDE, backward=False),
    "wide cross_entropy backward": lambda: _cross_entropy(*WIDE, backward=True),
    "sum_table_rows": lambda: _embedding_linear(backward=False),
    "scatter_into_tables": lambda: _embedding_linear(backward=True),
    "train_steps": _train_steps,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
