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

# Of log_probs and linear_log_probs: what a policy was sampled with, and the weight of its entropy in what it maximises.
TEMPERATURE, ENTROPY_BONUS = 0.9, 0.01


def embedding_linear(ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(F.linear(F.embedding(ids, embedding).flatten(-2), weight, bias))


def linear_cross_entropy(input: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(F.linear(input, weight), target, **options)


def log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """What trainers of policies take from the logits, in the way of TRL's `selective_log_softmax` and
    `entropy_from_logits`, which go through 128 rows at a time."""
    logits = logits / TEMPERATURE
    log_probs, entropy = [], []
    for rows, own in zip(logits.split(128), ids.unsqueeze(-1).split(128), strict=True):
        if logits.dtype in (torch.float32, torch.float64):
            log_probs.append(rows.gather(-1, own).squeeze(-1) - rows.logsumexp(-1))
        else:
            log_probs.append(rows.log_softmax(-1).gather(-1, own).squeeze(-1))
    for rows in logits.split(128):
        of_classes = rows.log_softmax(-1)
        entropy.append(-(of_classes.exp() * of_classes).sum(-1))
    return torch.cat(log_probs) + ENTROPY_BONUS * torch.cat(entropy)


def linear_log_probs(input: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return log_probs(F.linear(input, weight), ids)


def charlm_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    found = ops.log_probs(logits, ids, temperature=TEMPERATURE)
    return found.log_probs + ENTROPY_BONUS * found.entropy


def charlm_linear_log_probs(input: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    found = ops.linear_log_probs(input, weight, ids, temperature=TEMPERATURE)
    return found.log_probs + ENTROPY_BONUS * found.entropy


def mlp_cross_entropy(
    ids: Tensor, target: Tensor, embedding: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    return F.cross_entropy(F.linear(embedding_linear(ids, embedding, weight1, bias1), weight2, bias2), target)


EAGER: dict[str, Function] = {
    "cross_entropy": F.cross_entropy,
    "embedding_linear": embedding_linear,
    "linear_cross_entropy": linear_cross_entropy,
    "linear_log_probs": linear_log_probs,
    "log_probs": log_probs,
    "mlp_cross_entropy": mlp_cross_entropy,
}

# Of the ops that return more than a tensor.
CHARLM: dict[str, Function] = {"linear_log_probs": charlm_linear_log_probs, "log_probs": charlm_log_probs}


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
        "charlm": lambda: with_options(CHARLM.get(op) or getattr(ops, op)),
        "compile": lambda: compiled(with_options(EAGER[op])),
    }


def compiled(function: Function) -> Function:
    """For the shapes that it is called with next."""
    torch.compiler.reset()  # one function is not compiled for more than a few shapes
    result: Function = torch.compile(function, dynamic=False, fullgraph=True)
    return result
