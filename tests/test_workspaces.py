"""The memory that kernels take beside tensors, which no profiler of torch sees, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import linear_cross_entropy_sample, linear_log_probs_sample

from benchmarks.peak_memory import peak_bytes
from charlm import ops

ROWS, FEATURES, CLASSES = 4096, 8, 20_000
LOGITS = 4 * ROWS * CLASSES
# Gradients, results, and what a process touches at its first step.
OTHERS = 24 << 20


def step(op: str, with_backward: bool) -> Callable[[], object]:
    create = {"linear_cross_entropy": linear_cross_entropy_sample, "linear_log_probs": linear_log_probs_sample}[op]
    sample = create(ROWS, FEATURES, CLASSES, dtype=torch.float32)
    leaves = sample.leaves() if with_backward else {}

    def run() -> None:
        result = getattr(ops, op)(**{**sample.arguments, **leaves})
        if with_backward:
            total = result if isinstance(result, torch.Tensor) else result.log_probs.sum() + result.entropy.sum()
            torch.autograd.grad(total, list(leaves.values()))

    return run


@pytest.mark.cpu
@pytest.mark.parametrize("with_backward", [False, True], ids=["forward", "forward and backward"])
@pytest.mark.parametrize("op", ["linear_cross_entropy", "linear_log_probs"])
def test_a_twentieth_of_the_logits_is_held(op: str, with_backward: bool) -> None:
    peak = peak_bytes(partial(step, op, with_backward), threads=1)
    if sys.platform != "linux":
        assert peak is None
        return
    assert peak is not None
    assert LOGITS / 50 < peak < LOGITS / 20 + OTHERS
