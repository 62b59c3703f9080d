"""What every op is measured against, on the CPU and on a GPU: PyTorch as one writes it, and torch.compile of that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm import ops

Function = Callable[..., Tensor]


def embedding_linear(ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(F.linear(F.embedding(ids, embedding).flatten(-2), weight, bias))


def linear_cross_entropy(input: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(F.linear(input, weight), target, **options)


def mlp_cross_entropy(
    ids: Tensor, target: Tensor, embedding: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    return F.cross_entropy(F.linear(embedding_linear(ids, embedding, weight1, bias1), weight2, bias2), target)


EAGER: dict[str, Function] = {
    "cross_entropy": F.cross_entropy,
    "embedding_linear": embedding_linear,
    "linear_cross_entropy": linear_cross_entropy,
    "mlp_cross_entropy": mlp_cross_entropy,
}


HAS_TORCH_LINEAR = hasattr(F, "linear_cross_entropy")  # torch 2.13


def torch_linear(**options: Any) -> Function:
    """`F.linear_cross_entropy` in pieces; without its own `options` it is what eager is."""
    return partial(F.linear_cross_entropy, options=torch.nn.LinearCrossEntropyOptions(), **options)


def contestants(op: str, **options: Any) -> dict[str, Callable[[], Function]]:
    """What makes each implementation of an op with these options, by name; the first is what the others are held to."""

    def with_options(function: Function) -> Function:
        return (lambda *tensors: function(*tensors, **options)) if options else function

    return {
        "eager": lambda: with_options(EAGER[op]),
        "charlm": lambda: with_options(getattr(ops, op)),
        "compile": lambda: compiled(with_options(EAGER[op])),
    }


def compiled(function: Function) -> Function:
    """For the shapes that it is called with next."""
    torch.compiler.reset()  # one function is not compiled for more than a few shapes
    result: Function = torch.compile(function, dynamic=False, fullgraph=True)
    return result
