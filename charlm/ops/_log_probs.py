"""What log_probs and linear_log_probs return, and their results as one tensor, as the transforms take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from charlm.ops._arguments import ArgumentError, checked_ignore_index, number, softcap_code


class LogProbs(NamedTuple):
    """What a softmax over C classes gives for each row; the first three can be differentiated, alone and together.

    Attributes:
        log_probs: log-probabilities of the ids, in their shape, (...) or (..., K).
        entropy: of the distribution, in nats, (...).
        logsumexp: log of the sum of e^z over the classes, (...).
        argmax: the first of the most probable classes, (...), int64.
        rank: how many classes are more probable than the first id, (...), int64; 0 where none is.
    """

    log_probs: Tensor
    entropy: Tensor
    logsumexp: Tensor
    argmax: Tensor
    rank: Tensor

    def to(self, dtype: torch.dtype) -> LogProbs:
        """The same with what can be differentiated in another dtype."""
        if self.entropy.dtype is dtype:
            return self
        return LogProbs(self.log_probs.to(dtype), self.entropy.to(dtype), self.logsumexp.to(dtype), *self[3:])


_from_fields = LogProbs.__new__


def _from_fields_or_iterable(cls: type[LogProbs], *results: Any, **named: Any) -> LogProbs:
    """As for its own functions' results: torch makes those of a tensor's subclass by `type(results)(iterable)`."""
    if len(results) == 1 and not named:
        (results,) = results
    return _from_fields(cls, *results, **named)


# The body of a NamedTuple cannot define it, and torch.compile knows no class derived from one that does.
LogProbs.__new__ = _from_fields_or_iterable  # type: ignore[assignment, method-assign]


class LogProbsOptions(NamedTuple):
    """The options of log_probs as the op schemas have them, in their order."""

    ignore_index: int
    temperature: float
    softcap: float


def log_probs_options(ignore_index: int, temperature: float, softcap: float | None) -> LogProbsOptions:
    """The options of log_probs as the op schemas have them.

    Raises:
        TypeError: an option is a bool, or no number.
        ArgumentError: an option is out of range.
    """
    temperature = number("temperature", "a positive, finite number", temperature)
    if not 0.0 < temperature < math.inf:
        raise ArgumentError(f"temperature must be positive and finite, got {temperature}")
    return LogProbsOptions(checked_ignore_index(ignore_index), temperature, softcap_code(softcap))


def keywords(options: LogProbsOptions) -> dict[str, Any]:
    """The options as callers have them."""
    return {**options._asdict(), "softcap": options.softcap or None}


# One tensor of numbers for all results, (N*K + 4*N,): an op of `_transforms.Op` has one result. argmax and rank are
# whole numbers there, with derivative 0.


def packed(results: Sequence[Tensor], classes: int) -> Tensor:
    """The results as one tensor, in the dtype that is computed in."""
    dtype = _dtype_of(results, classes)
    flat = [result.reshape(-1) for result in results]
    # A cast that does nothing would, in an exported program, refuse what autocast has in another dtype there.
    return torch.cat([result if result.dtype == dtype else result.to(dtype) for result in flat])


def packed_each(results: Sequence[Tensor], classes: int) -> Tensor:
    """The same of results (B, ...) of B samples: (B, N*K + 4*N)."""
    dtype = _dtype_of(results, classes)
    return torch.cat([result.unsqueeze(-1).flatten(1).to(dtype) for result in results], 1)


def packed_gradients(gradients: Sequence[Tensor | None], ids: Tensor, kept: Tensor) -> Tensor:
    """Upstream gradients of the first three results as that of the tensor that has all of them; kept (3, N)."""
    rows = kept.shape[1]
    parts = [
        kept.new_zeros(count) if gradient is None else gradient.reshape(-1)
        for gradient, count in zip(gradients, (ids.numel(), rows, rows), strict=True)
    ]
    return torch.cat([*parts, kept.new_zeros(2 * rows)])


def unpacked(found: Tensor, ids: Tensor, row_shape: torch.Size) -> LogProbs:
    """The results of `packed`: for ids of that shape, and rows (...) of that shape."""
    rows = math.prod(row_shape)
    log_probs, *others = found.split([ids.numel(), rows, rows, rows, rows])
    entropy, logsumexp, argmax, rank = (other.reshape(row_shape) for other in others)
    return LogProbs(log_probs.reshape(ids.shape), entropy, logsumexp, argmax.long(), rank.long())


def _dtype_of(results: Sequence[Tensor], classes: int) -> torch.dtype:
    """The dtype of the first results, in which the number of each class has to have a place."""
    dtype = results[0].dtype
    most = 2 ** (24 if dtype == torch.float32 else 53)
    if classes > most:
        raise ArgumentError(f"transforms take at most {most} classes in {dtype}, got {classes}")
    return dtype


def fake_results(input: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the forward ops return, without values."""
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    shape = input.shape[:-1]
    rows = 1
    for size in shape:
        rows = rows * size
    return (
        input.new_empty(ids.shape, dtype=dtype),
        input.new_empty(shape, dtype=dtype),
        input.new_empty(shape, dtype=dtype),
        input.new_empty(shape, dtype=torch.int64),
        input.new_empty(shape, dtype=torch.int64),
        input.new_empty([3, rows], dtype=dtype),
    )
