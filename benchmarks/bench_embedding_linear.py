"""How fast is embedding_linear, forward and backward, against PyTorch eager and torch.compile, on one thread?

Run: `python -m pytest benchmarks/bench_embedding_linear.py --benchmark-group-by=param:shape`

The floor at (N, T, V, D, H) with the U distinct (position, token) pairs of the batch, float32:

    operations  N H tanh; N T H additions forward and as many backward; U D H multiply-adds, three times
                (P, dE, dW)
    bytes       12 N H: forward writes the output; backward reads it and the upstream gradient

At (4096, 3, 27, 10, 200) that is 0.82 million tanh, 4.9 million additions, 0.5 million multiply-adds and 9.8 MB; eager
needs 74 million multiply-adds and moves some 40 MB. Where nearly every pair is distinct (the last two shapes) the floor
is eager's own: 3 N T D H multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

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


CONTESTANTS: dict[str, Callable[..., Tensor]] = {
    "charlm": ops.embedding_linear,
    "eager": eager,
    "compile": torch.compile(eager),
}


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_forward_and_backward(
    benchmark: BenchmarkFixture, shape: tuple[int, int, int, int, int], contestant: str
) -> None:
    rows, context_length, vocab_size, embedding_dim, hidden_dim = shape
    function = CONTESTANTS[contestant]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(vocab_size, (rows, context_length))
    embedding = torch.randn(vocab_size, embedding_dim, requires_grad=True)
    fan_in = context_length * embedding_dim
    weight = (torch.randn(hidden_dim, fan_in) / fan_in**0.5).requires_grad_()
    bias = torch.randn(hidden_dim, requires_grad=True)
    upstream = torch.randn(rows, hidden_dim)

    def step() -> None:
        embedding.grad = weight.grad = bias.grad = None
        function(ids, embedding, weight, bias).backward(upstream)

    benchmark.pedantic(step, rounds=200 if rows * vocab_size < 10**7 else 20, warmup_rounds=5)
