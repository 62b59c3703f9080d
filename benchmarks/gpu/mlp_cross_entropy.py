"""mlp_cross_entropy, float32, on contexts of the embedded names; forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Step, Workload
from benchmarks.opponents import contestants
from charlm import data

CONTEXT_LENGTH = 3
# (N, D, H): the lecture's model at its batch size, at a large one, and on as many examples as its names have; that of
# EurekaLabsAI/mlp.
SHAPES = ((32, 10, 200), (4096, 10, 200), (228_146, 10, 200), (128, 48, 512))

# ids, target, embedding, weight1, bias1, weight2, bias2
Loss = Callable[..., Tensor]


def workloads() -> Iterator[Workload]:
    dataset = data.load(context_length=CONTEXT_LENGTH)
    return (workload(dataset, *shape) for shape in SHAPES)


def workload(dataset: data.Dataset, rows: int, embedding_dim: int, hidden_dim: int) -> Workload:
    classes = len(dataset.vocabulary)
    return Workload(
        f"mlp_cross_entropy N={rows:,} T={CONTEXT_LENGTH} V={classes} D={embedding_dim} H={hidden_dim}, "
        "forward + backward",
        tuple(IMPLEMENTATIONS),
        lambda: _create(dataset, rows, embedding_dim, hidden_dim),
        {
            "rows": rows,
            "context_length": CONTEXT_LENGTH,
            "vocab_size": classes,
            "embedding_dim": embedding_dim,
            "hidden_dim": hidden_dim,
            "flops": product_flops(rows, hidden_dim, classes),
            "ceiling": "float32 product",
            "examples": rows,
        },
    )


def product_flops(rows: int, hidden_dim: int, classes: int) -> int:
    """Of the three products of the output layer; those of the first layer can be a table's, whatever N is."""
    return 6 * rows * hidden_dim * classes


def _create(dataset: data.Dataset, rows: int, embedding_dim: int, hidden_dim: int) -> Callable[[str], Step]:
    batch = dataset.train.batch(torch.randint(len(dataset.train), (rows,)))
    ids, target = (tokens.long().to(measure.DEVICE) for tokens in batch)
    classes, fan_in = len(dataset.vocabulary), CONTEXT_LENGTH * embedding_dim
    sizes = ((classes, embedding_dim), (hidden_dim, fan_in), (hidden_dim,), (classes, hidden_dim), (classes,))
    parameters = [(torch.randn(size, device=measure.DEVICE) / size[-1] ** 0.5).requires_grad_() for size in sizes]

    def step(name: str) -> Step:
        loss = IMPLEMENTATIONS[name]()

        def run() -> list[Tensor]:
            value = loss(ids, target, *parameters)
            return [value, *torch.autograd.grad(value, parameters)]

        return run

    return step


IMPLEMENTATIONS = contestants("mlp_cross_entropy")
