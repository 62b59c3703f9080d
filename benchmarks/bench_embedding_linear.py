"""embedding_linear against eager PyTorch and torch.compile, forward and backward, one thread.

Floor at (N, T, V, D, H), with the U distinct (position, token) pairs of the batch, in float32: 12 N H bytes, as forward
writes the output and backward reads it and the upstream gradient; and U D H multiply-adds three times, for the table
projected and the gradients of table and weight. At (4096, 3, 27, 10, 200) that is 9.8 MB and 0.5 million multiply-adds,
where eager has 74 million and moves some 40 MB. Where nearly every pair is distinct (the last two shapes) the floor is
eager's own: 3 N T D H multiply-adds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.common import copy_seconds, implementations, measure, product_seconds
from benchmarks.opponents import contestants

# (N, T, V, D, H): the lecture's model at a large and at two small batches; word models with large vocabularies.
SHAPES = (
    (4096, 3, 27, 10, 200),
    (64, 3, 27, 10, 200),
    (32, 3, 27, 10, 200),
    (256, 5, 16383, 60, 100),
    (4096, 8, 50000, 64, 512),
)


@implementations
@pytest.mark.parametrize(("rows", "context_length", "vocab_size", "embedding_dim", "hidden_dim"), SHAPES)
def test_forward_and_backward(
    benchmark: Any,
    rows: int,
    context_length: int,
    vocab_size: int,
    embedding_dim: int,
    hidden_dim: int,
    implementation: str,
) -> None:
    ids = torch.randint(vocab_size, (rows, context_length))
    embedding = torch.randn(vocab_size, embedding_dim, requires_grad=True)
    fan_in = context_length * embedding_dim
    weight = (torch.randn(hidden_dim, fan_in) / fan_in**0.5).requires_grad_()
    bias = torch.randn(hidden_dim, requires_grad=True)
    upstream = torch.randn(rows, hidden_dim)
    function = contestants("embedding_linear")[implementation]()

    def step() -> None:
        embedding.grad = weight.grad = bias.grad = None
        function(ids, embedding, weight, bias).backward(upstream)

    pairs = sum(len(column.unique()) for column in ids.T)
    measure(
        benchmark,
        f"embedding_linear N={rows} T={context_length} V={vocab_size} D={embedding_dim} H={hidden_dim}",
        step,
        floor="output written, output and gradient read; three products of the distinct tokens",
        floor_seconds=copy_seconds(6 * rows * hidden_dim) + product_seconds(6.0 * pairs * embedding_dim * hidden_dim),
    )
