"""The examples of a split where steps read them: each distinct context once, on a device that they are moved to once.

They are kept for as long as the split is there: all models that train on it on one device share them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from charlm.data import Split

# Up to so many examples their contexts are looked up once, which takes some 50 ns and 4 bytes for each of them; from
# there on in every batch.
_INDEXED_EXAMPLES = 1 << 24

_kept: WeakKeyDictionary[Split, dict[Hashable, Any]] = WeakKeyDictionary()


class Batches(NamedTuple):
    """Examples, and which of them each step takes: what `charlm.engine.train_steps` is given.

    Attributes:
        contexts: (U, T), what the model reads of each distinct context; or (N, T), of each example.
        targets: (N,).
        indices: (S, B) int64 on the CPU, the examples of each step.
        context_index: (N,), the context of each example where they are distinct, or None.
    """

    contexts: Tensor
    targets: Tensor
    indices: Tensor
    context_index: Tensor | None


class Counts(NamedTuple):
    """All examples: what `charlm.engine.train_full_steps` is given.

    Attributes:
        contexts: (U, T), what the model reads of each context, each once.
        row_ptr, targets, counts: how often each target follows each, in the compressed rows of `TargetCounts`.
    """

    contexts: Tensor
    row_ptr: Tensor
    targets: Tensor
    counts: Tensor


def batches(split: Split, context_length: int, device: torch.device, batch_indices: Tensor) -> Batches:
    """What steps on some batches read.

    Args:
        split: the examples.
        context_length: T, the tokens at the end of a context that the model reads.
        device: where contexts, targets and their index are.
        batch_indices: (S, B) int64 on the CPU.
    """
    if len(split) > _INDEXED_EXAMPLES:
        contexts, targets = split.batch(batch_indices.flatten())
        indices = torch.arange(len(targets), device="cpu").view_as(batch_indices)
        return Batches(contexts[:, -context_length:].to(device), targets.to(device), indices, None)

    def make() -> tuple[Tensor, Tensor, Tensor]:
        distinct = split.kept_distinct()
        contexts = distinct.contexts[:, -context_length:].int()
        return contexts.to(device), split.targets.to(device), distinct.index.to(device)

    contexts, targets, context_index = kept(split, ("batches", context_length, device), make)
    return Batches(contexts, targets, batch_indices, context_index)


def all_counts(split: Split, context_length: int, device: torch.device) -> Counts:
    """What steps on the whole split read; arguments as of `batches`."""

    def make() -> Counts:
        if context_length < split.context_length:
            distinct = split.kept_distinct()
            last = distinct.contexts[:, -context_length:][distinct.index.long()].flatten()
            counts = _count_pairs(last, split.targets, split.vocab_size)
        else:
            distinct = split.kept_distinct(with_index=False)
            counts = Counts(distinct.contexts, distinct.counts.row_ptr, distinct.counts.targets, distinct.counts.values)
        return Counts(*(tensor.to(device) for tensor in counts))

    counts: Counts = kept(split, ("counts", context_length, device), make)
    return counts


def kept(split: Split, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` has returned when this was asked for first, of this split and under this key."""
    made = _kept.setdefault(split, {})
    if key not in made:
        made[key] = make()
    return made[key]


def _count_pairs(tokens: Tensor, targets: Tensor, vocab_size: int) -> Counts:
    """How often each target follows each token."""
    pairs, counts = (tokens.long() * vocab_size + targets).unique(return_counts=True)
    contexts, lengths = (pairs // vocab_size).unique(return_counts=True)
    row_ptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Counts(contexts.unsqueeze(1), row_ptr, pairs % vocab_size, counts)
