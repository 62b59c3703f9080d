"""mlp_cross_entropy against eager PyTorch and torch.compile, forward and backward, one thread.

Floor with the U distinct contexts and W distinct (position, token) pairs of the batch: the products of the output layer
for each context and of the first layer for each pair, 6 U H V + 6 W D H operations; eager has 6 N (T D H + H V).
"""

from typing import Any

import pytest
import torch

from benchmarks.common import implementations, measure, product_seconds
from benchmarks.opponents import contestants
from charlm import data

# (N, T, D, H): batches of the lecture's model, of EurekaLabsAI/mlp's, and of a longer context, from the embedded names.
SHAPES = ((32, 3, 10, 200), (4096, 3, 10, 200), (128, 3, 48, 512), (2048, 6, 24, 400))


@implementations
@pytest.mark.parametrize(("rows", "context_length", "embedding_dim", "hidden_dim"), SHAPES)
def test_forward_and_backward(
    benchmark: Any, rows: int, context_length: int, embedding_dim: int, hidden_dim: int, implementation: str
) -> None:
    dataset = data.load(context_length=context_length)
    classes = len(dataset.vocabulary)
    ids, target = (tokens.long() for tokens in dataset.train.batch(torch.randint(len(dataset.train), (rows,))))
    fan_in = context_length * embedding_dim
    shapes = ((classes, embedding_dim), (hidden_dim, fan_in), (hidden_dim,), (classes, hidden_dim), (classes,))
    parameters = [(torch.randn(shape) / shape[-1] ** 0.5).requires_grad_() for shape in shapes]
    loss = contestants("mlp_cross_entropy")[implementation]()

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        loss(ids, target, *parameters).backward()

    contexts, pairs = len(ids.unique(dim=0)), sum(len(column.unique()) for column in ids.T)
    measure(
        benchmark,
        f"mlp_cross_entropy N={rows} T={context_length} V={classes} D={embedding_dim} H={hidden_dim}",
        step,
        floor="products of the distinct contexts and tokens",
        floor_seconds=product_seconds(6.0 * hidden_dim * (contexts * classes + pairs * embedding_dim)),
    )
