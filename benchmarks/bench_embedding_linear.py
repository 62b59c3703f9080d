"""How fast is embedding_linear, forward and backward, against PyTorch eager and torch.compile?

The floor at (N, T, V, D, H) with the U distinct (position, token) pairs of the batch, float32, is the larger of

    12 N H bytes                forward writes the output; backward reads it and the upstream gradient
    3 U D H multiply-adds       the products of the pairs, and the gradients of both factors

and leaves out N H tanh and 2 N T H additions. At (4096, 3, 27, 10, 200) that is 9.8 MB, 0.5 million multiply-adds, 0.8
million tanh and 4.9 million additions; eager needs 74 million multiply-adds and moves some 40 MB. Where nearly all
pairs are distinct, as in the last two shapes, the floor is eager's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import copy_seconds, implementations, measure, product_seconds
from charlm import ops

# (N, T, V, D, H): the lecture's model at a large and at two small batches; word models with large vocabularies.
SHAPES = (
    (4096, 3, 27, 10, 200),
    (64, 3, 27, 10, 200),
    (32, 3, 27, 10, 200),
    (256, 5, 16383, 60, 100),
    (4096, 8, 50000, 64, 512),
)


def eager(ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(F.linear(F.embedding(ids, embedding).flatten(-2), weight, bias))


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "charlm": ops.embedding_linear,
    "eager": eager,
    "compile": torch.compile(eager),
}


@implementations
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(benchmark: Any, shape: tuple[int, int, int, int, int], implementation: str) -> None:
    rows, context_length, vocab_size, embedding_dim, hidden_dim = shape
    fan_in = context_length * embedding_dim
    ids = torch.randint(vocab_size, (rows, context_length))
    embedding = torch.randn(vocab_size, embedding_dim, requires_grad=True)
    weight = (torch.randn(hidden_dim, fan_in) / fan_in**0.5).requires_grad_()
    bias = torch.randn(hidden_dim, requires_grad=True)
    upstream = torch.randn(rows, hidden_dim)
    function = FUNCTIONS[implementation]

    def step() -> None:
        embedding.grad = weight.grad = bias.grad = None
        function(ids, embedding, weight, bias).backward(upstream)

    pairs = sum(ids[:, position].unique().numel() for position in range(context_length))
    size, products = 12 * rows * hidden_dim, 3 * pairs * embedding_dim * hidden_dim
    measure(
        benchmark,
        f"embedding_linear forward + backward, N={rows}, T={context_length}, V={vocab_size}, D={embedding_dim}, "
        f"H={hidden_dim}",
        step,
        floor=f"{size / 1e6:.1f} MB, {products / 1e6:.1f} million multiply-adds",
        floor_seconds=max(copy_seconds(size // 2), product_seconds(2.0 * products)),
    )
