"""The mean negative log-likelihood of a model, from the distinct contexts of a split."""

from __future__ import annotations

import torch

from charlm.data import Distinct, Split
from charlm.distributed import ALONE, Processes
from charlm.models import LanguageModel

# Distinct contexts, and logits, in memory at a time.
_ROWS_AT_ONCE = 1 << 12
_LOGITS_AT_ONCE = 1 << 22


@torch.no_grad()
def evaluate(model: LanguageModel, split: Split | Distinct, processes: Processes = ALONE) -> float:
    """The mean of -log p(target | context) over all examples of `split`, in nats.

    Every distinct context goes through the model once, in the model's dtype; the rest is float64. The result is exact
    up to rounding, and infinite where the model gives a target probability 0.

    Args:
        model: any language model.
        split: a split of a dataset, or its `distinct()`, which a caller that evaluates often computes once.
        processes: `charlm.distributed.current()` shares the work among all of them, which then all call this and get
            the same result.

    Raises:
        ValueError: the split has no examples.
    """
    distinct = split.distinct() if isinstance(split, Split) else split
    examples = int(distinct.counts.values.sum())
    if examples == 0:
        raise ValueError("split has no examples to evaluate")
    own = processes.shard(len(distinct))
    rows_at_once = max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // model.vocab_size))
    total = 0.0
    for start in range(own.start, own.stop, rows_at_once):
        rows = slice(start, min(start + rows_at_once, own.stop))
        logits = model(distinct.contexts[rows].to(model.device)).cpu().double()
        counts = distinct.counts[rows]
        losses = torch.where(counts > 0, -counts * torch.log_softmax(logits, dim=-1), 0.0)
        total += losses.sum().item()
    return processes.sum(total) / examples
