"""embedding_linear of characters, float32, and of a large vocabulary, bfloat16; forward, and forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Step, Workload
from benchmarks.opponents import contestants

Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """N examples of T tokens, V tokens in all, D and H as everywhere."""

    rows: int
    context_length: int
    vocab_size: int
    embedding_dim: int
    hidden_dim: int
    dtype: torch.dtype


# The lecture's first layer; one of words, whose table of products would cost more than gathering.
SHAPES = (
    Shape(1 << 20, 3, 27, 10, 200, torch.float32),
    Shape(1 << 16, 8, 50_000, 64, 512, torch.bfloat16),
)


def workloads() -> Iterator[Workload]:
    for shape in SHAPES:
        for backward in (False, True):
            yield workload(shape, backward=backward)


def workload(shape: Shape, *, backward: bool) -> Workload:
    sizes = f"N={shape.rows:,} T={shape.context_length} V={shape.vocab_size:,} D={shape.embedding_dim}"
    return Workload(
        f"embedding_linear {sizes} H={shape.hidden_dim} {str(shape.dtype).removeprefix('torch.')}, "
        f"forward{' + backward' * backward}",
        tuple(IMPLEMENTATIONS),
        lambda: _create(shape, backward=backward),
        {
            "rows": shape.rows,
            "context_length": shape.context_length,
            "vocab_size": shape.vocab_size,
            "embedding_dim": shape.embedding_dim,
            "hidden_dim": shape.hidden_dim,
            "bytes": moved_bytes(shape, backward=backward),
            "ceiling": "copy" if backward else "write",
        },
    )


def moved_bytes(shape: Shape, *, backward: bool) -> int:
    """What must be moved: (N, H) written; backward, it and its gradient read. Tokens and parameters are left out."""
    return shape.rows * shape.hidden_dim * shape.dtype.itemsize * (3 if backward else 1)


def inputs(shape: Shape, *, backward: bool) -> tuple[Tensor, list[Tensor], Tensor]:
    """Ids, parameters, and the gradient of the output."""
    ids = torch.randint(shape.vocab_size, (shape.rows, shape.context_length), device=measure.DEVICE)
    fan_in = shape.context_length * shape.embedding_dim
    sizes = ((shape.vocab_size, shape.embedding_dim), (shape.hidden_dim, fan_in), (shape.hidden_dim,))
    parameters = [
        (torch.randn(size, device=measure.DEVICE) / size[-1] ** 0.5).to(shape.dtype).requires_grad_(backward)
        for size in sizes
    ]
    return ids, parameters, torch.randn(shape.rows, shape.hidden_dim, dtype=shape.dtype, device=measure.DEVICE)


def _create(shape: Shape, *, backward: bool) -> Callable[[str], Step]:
    ids, parameters, upstream = inputs(shape, backward=backward)

    def step(name: str) -> Step:
        layer = IMPLEMENTATIONS[name]()

        def run() -> list[Tensor]:
            output = layer(ids, *parameters)
            return [output, *torch.autograd.grad(output, parameters, upstream)] if backward else [output]

        return run

    return step


IMPLEMENTATIONS = contestants("embedding_linear")
