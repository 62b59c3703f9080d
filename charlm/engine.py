"""Whole training steps in one call: forward, backward and update of many steps without returning to Python.

Examples of a batch that share a context share its hidden state and its logits, so each distinct context of a batch is
computed once. Parameters and optimizer state are ordinary tensors, updated in place; the GIL is released.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from charlm._rules import check_type
from charlm.ops import _extension  # noqa: F401  registers the ops
from charlm.ops._arguments import softcap_code
from charlm.optimizers import OptimizerOptions

__all__ = ["evaluate_full", "train_full_steps", "train_steps"]

_OPTIMIZERS = {"sgd": 0, "adamw": 1}
_PLAIN_SGD = OptimizerOptions()


@torch.no_grad()
def train_steps(
    parameters: Sequence[Tensor],
    optimizer_state: Sequence[Tensor],
    contexts: Tensor,
    targets: Tensor,
    batch_indices: Tensor,
    learning_rates: Tensor,
    options: OptimizerOptions = _PLAIN_SGD,
    *,
    context_index: Tensor | None = None,
    softcap: float | None = None,
    first_step: int = 0,
) -> Tensor:
    """Trains S steps on the mean cross-entropy of a batch each; the same updates as autograd and `torch.optim`.

    Args:
        parameters: of an MLP: embedding (V, D), weight1 (H, T*D), bias1 (H,), weight2 (V, H), bias2 (V,) and perhaps
            direct_weight (V, T*D); or of a bigram: weight (V, V). float32 or float64, contiguous, updated in place.
        optimizer_state: updated in place, in the order of `parameters`: nothing for "sgd" without momentum, the
            momentum buffers with it; for "adamw" all first moments, then all second moments.
        contexts: (N, T), any integer dtype and strides, values in [0, V); T = 1 for a bigram.
        targets: (N,), any integer dtype, values in [0, V).
        batch_indices: (S, B), the examples of each step.
        learning_rates: (S,).
        options: of the optimizer.
        context_index: (N,), where `contexts` holds each distinct context once, (U, T): the context of every example.
            Without it equal contexts are looked for among the examples of the batches, at every call.
        softcap: bounds the logits to (-softcap, softcap); None for none.
        first_step: how many steps were done before, which AdamW's bias correction counts.

    Returns:
        The loss of every step's batch before its update: (S,), dtype of the parameters.

    Raises:
        IndexError: a token or target of a batch, or an index is out of range. No parameter was changed.
        ValueError: an argument has the wrong shape, dtype, device or range. No parameter was changed.
    """
    return torch.ops.charlm.train_steps.default(
        _detached(parameters),
        _detached(optimizer_state),
        contexts,
        targets,
        context_index,
        batch_indices,
        learning_rates,
        *_arguments(options, softcap, first_step),
    )


@torch.no_grad()
def train_full_steps(
    parameters: Sequence[Tensor],
    optimizer_state: Sequence[Tensor],
    contexts: Tensor,
    row_ptr: Tensor,
    targets: Tensor,
    counts: Tensor,
    learning_rates: Tensor,
    options: OptimizerOptions = _PLAIN_SGD,
    *,
    softcap: float | None = None,
    first_step: int = 0,
) -> Tensor:
    """Trains S steps, each on all examples at once: the exact gradient of a whole split.

    Args:
        contexts: (U, T), each distinct context once, in any order.
        row_ptr, targets, counts: how often each target follows each context, in compressed sparse rows: the targets of
            context u are `targets[row_ptr[u] : row_ptr[u + 1]]`, and `counts` says how often each occurs.
        parameters, optimizer_state, learning_rates, options, softcap, first_step: as in `train_steps`.

    Returns:
        The mean loss of all examples before every update: (S,), dtype of the parameters.

    Raises:
        IndexError, ValueError: as `train_steps`.
    """
    return torch.ops.charlm.train_full_steps.default(
        _detached(parameters),
        _detached(optimizer_state),
        contexts,
        row_ptr,
        targets,
        counts,
        learning_rates,
        *_arguments(options, softcap, first_step),
    )


@torch.no_grad()
def evaluate_full(
    parameters: Sequence[Tensor],
    contexts: Tensor,
    row_ptr: Tensor,
    targets: Tensor,
    counts: Tensor,
    *,
    softcap: float | None = None,
) -> Tensor:
    """The mean cross-entropy of all examples: the loss of `train_full_steps`, without its step.

    Args:
        parameters: as in `train_steps`, of any strides; only read.
        contexts, row_ptr, targets, counts: as in `train_full_steps`; a context may be there more than once.
        softcap: bounds the logits to (-softcap, softcap); None for none.

    Returns:
        A scalar in float64. Losses are computed in the dtype of the parameters, and added up in float64.

    Raises:
        IndexError, ValueError: as `train_steps`.
    """
    contiguous = [parameter.contiguous() for parameter in _detached(parameters)]
    return torch.ops.charlm.evaluate_full.default(contiguous, contexts, row_ptr, targets, counts, softcap_code(softcap))


def _detached(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same memory as tensors that may be written to although they require a gradient."""
    return [tensor.detach() for tensor in tensors]


def _arguments(options: OptimizerOptions, softcap: float | None, first_step: int) -> tuple[Any, ...]:
    """What both ops end with."""
    check_type("options", options, OptimizerOptions)
    return (
        _OPTIMIZERS[options.optimizer],
        options.momentum,
        *options.betas,
        options.eps,
        options.weight_decay,
        0.0 if options.max_grad_norm is None else options.max_grad_norm,
        softcap_code(softcap),
        first_step,
    )
