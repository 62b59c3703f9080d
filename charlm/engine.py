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

__all__ = ["evaluate_full", "train_full_population", "train_full_steps", "train_population", "train_steps"]

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
def train_population(
    parameters: Sequence[Sequence[Tensor]],
    optimizer_state: Sequence[Sequence[Tensor]],
    contexts: Tensor,
    targets: Tensor,
    batch_indices: Tensor,
    learning_rates: Tensor,
    options: Sequence[OptimizerOptions],
    *,
    context_index: Tensor | None = None,
    softcaps: Sequence[float | None] | None = None,
    first_steps: Sequence[int] | None = None,
) -> Tensor:
    """Trains S steps of each of M models of one shape, as many models at a time as torch has threads.

    Each ends with the bits that `train_steps` by itself would give it.

    Args:
        parameters: of each model, as in `train_steps`; all of the same shapes, dtype and device. No two models share
            memory.
        optimizer_state: of each model, as in `train_steps`.
        contexts, targets, context_index: as in `train_steps`, for all models.
        batch_indices: (M, S, B), the examples of each step of each model.
        learning_rates: (M, S).
        options: of each model; all of one `optimizer`, and all with `momentum` or all without.
        softcaps: of each model; None for none at all.
        first_steps: of each model; None for 0.

    Returns:
        The losses of every model: (M, S), dtype of the parameters.

    Raises:
        IndexError, ValueError: as `train_steps`, where the message names the model. No parameter of any was changed.
    """
    return torch.ops.charlm.train_population.default(
        _all_detached("parameters", parameters, len(options)),
        _all_detached("optimizer_state", optimizer_state, len(options)),
        contexts,
        targets,
        context_index,
        batch_indices,
        learning_rates,
        *_population_arguments(options, softcaps, first_steps),
    )


@torch.no_grad()
def train_full_population(
    parameters: Sequence[Sequence[Tensor]],
    optimizer_state: Sequence[Sequence[Tensor]],
    contexts: Tensor,
    row_ptr: Tensor,
    targets: Tensor,
    counts: Tensor,
    learning_rates: Tensor,
    options: Sequence[OptimizerOptions],
    *,
    softcaps: Sequence[float | None] | None = None,
    first_steps: Sequence[int] | None = None,
) -> Tensor:
    """Trains S steps of each of M models, each step on all examples at once: `train_full_steps` of all of them.

    Args:
        contexts, row_ptr, targets, counts: as in `train_full_steps`, for all models.
        parameters, optimizer_state, learning_rates, options, softcaps, first_steps: as in `train_population`.

    Returns:
        The losses of every model: (M, S), dtype of the parameters.

    Raises:
        IndexError, ValueError: as `train_population`.
    """
    return torch.ops.charlm.train_full_population.default(
        _all_detached("parameters", parameters, len(options)),
        _all_detached("optimizer_state", optimizer_state, len(options)),
        contexts,
        row_ptr,
        targets,
        counts,
        learning_rates,
        *_population_arguments(options, softcaps, first_steps),
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


def _all_detached(name: str, tensors: Sequence[Sequence[Tensor]], models: int) -> list[Tensor]:
    """Those of the first model, then of the second, ..."""
    _check_length(name, tensors, models)
    for of_model in tensors:
        if len(of_model) != len(tensors[0]):
            raise ValueError(
                f"{name} must be as many tensors for each model, got {len(tensors[0])} and {len(of_model)}"
            )
    return [tensor for of_model in tensors for tensor in _detached(of_model)]


def _check_length(name: str, values: Sequence[Any], models: int) -> None:
    if len(values) != models:
        raise ValueError(f"{name} must have one entry for each of the {models} models, got {len(values)}")


def _arguments(options: OptimizerOptions, softcap: float | None, first_step: int) -> tuple[Any, ...]:
    """What the ops of one model end with."""
    check_type("options", options, OptimizerOptions)
    return (_OPTIMIZERS[options.optimizer], *_numbers(options, softcap), first_step)


def _population_arguments(
    options: Sequence[OptimizerOptions], softcaps: Sequence[float | None] | None, first_steps: Sequence[int] | None
) -> tuple[int, Tensor, Tensor]:
    """What the ops of many models end with."""
    if not options:
        raise ValueError("options must be those of at least one model, got none")
    for model, own in enumerate(options):
        check_type(f"options[{model}]", own, OptimizerOptions)
    kinds = {own.optimizer for own in options}
    if len(kinds) > 1:
        raise ValueError(f"optimizer must be the same for all models, got {' and '.join(sorted(kinds))}")
    softcaps = [None] * len(options) if softcaps is None else softcaps
    first_steps = [0] * len(options) if first_steps is None else first_steps
    _check_length("softcaps", softcaps, len(options))
    _check_length("first_steps", first_steps, len(options))
    numbers = [_numbers(own, softcap) for own, softcap in zip(options, softcaps, strict=True)]
    return (
        _OPTIMIZERS[options[0].optimizer],
        torch.tensor(numbers, dtype=torch.float64, device="cpu"),
        torch.tensor(list(first_steps), dtype=torch.int64, device="cpu"),
    )


def _numbers(options: OptimizerOptions, softcap: float | None) -> tuple[float, ...]:
    """In the order of the ops; 0 is none."""
    norm = 0.0 if options.max_grad_norm is None else options.max_grad_norm
    return (options.momentum, *options.betas, options.eps, options.weight_decay, norm, softcap_code(softcap))
