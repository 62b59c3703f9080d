"""What a call costs beside its arithmetic: every op on tiny tensors against eager PyTorch, forward, and with backward.

Floor: the addition of two numbers, forward or with backward, which is all dispatch and autograd.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.common import implementations, measure
from benchmarks.timing import forward_and_backward
from charlm import ops
from charlm.ops import reference

# The smallest batch of the lecture's kind: N examples, T characters of context, V characters, D and H features.
N, T, V, D, H = 32, 3, 27, 10, 16

_FLOOR_CALLS = 1000


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def arguments() -> dict[str, tuple[Tensor, ...]]:
    """By position; what has an output layer has its weight before the targets, as in torch."""
    ids, target = torch.randint(V, (N, T)), torch.randint(V, (N,))
    first, second = (leaf(V, D), leaf(H, T * D), leaf(H)), (leaf(V, H), leaf(V))
    return {
        "cross_entropy": (leaf(N, V), target),
        "embedding_linear": (ids, *first),
        "linear_cross_entropy": (leaf(N, D), leaf(V, D), target),
        "linear_log_probs": (leaf(N, D), leaf(V, D), target),
        "log_probs": (leaf(N, V), target),
        "mlp_cross_entropy": (ids, target, *first, *second),
    }


@implementations
@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.parametrize("op", reference.__all__)
def test_overhead(benchmark: Any, op: str, direction: str, implementation: str) -> None:
    # The reference is F.cross_entropy, F.linear and F.embedding, a line of Python around each.
    eager = getattr(reference, op)
    functions = {"charlm": getattr(ops, op), "eager": eager, "compile": torch.compile(eager)}
    step = step_of(first_result(functions[implementation]), arguments()[op], direction)
    one, other = torch.ones((), requires_grad=True), torch.ones(())
    add = step_of(torch.add, (one, other), direction)
    measure(
        benchmark,
        f"overhead of {op}, {direction}",
        step,
        floor="two numbers added",
        floor_seconds=min(timeit.repeat(add, number=_FLOOR_CALLS)) / _FLOOR_CALLS,
    )


def first_result(function: Callable[..., Tensor | ops.LogProbs]) -> Callable[..., Tensor]:
    def call(*given: Tensor) -> Tensor:
        result = function(*given)
        return result if isinstance(result, Tensor) else result.log_probs

    return call


def step_of(function: Callable[..., Tensor], given: tuple[Tensor, ...], direction: str) -> Callable[[], object]:
    if direction == "forward":
        detached = tuple(tensor.detach() for tensor in given)
        return lambda: function(*detached)
    return forward_and_backward(function, given, torch.ones_like(function(*given)))
