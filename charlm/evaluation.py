"""The mean negative log-likelihood of a model, from the distinct contexts of a split."""

from __future__ import annotations

import torch
from torch import Tensor

from charlm import engine
from charlm.data import Distinct, Split
from charlm.distributed import ALONE, Processes
from charlm.models import LanguageModel, engine_parameters

# Up to so many examples their distinct contexts are looked for at once; of more they take too much memory.
_EXAMPLES_AT_ONCE = 1 << 24
# Distinct contexts, and logits, in memory at a time.
_ROWS_AT_ONCE = 1 << 12
_LOGITS_AT_ONCE = 1 << 22


@torch.no_grad()
def evaluate(model: LanguageModel, split: Split | Distinct, processes: Processes = ALONE) -> float:
    """The mean of -log p(target | context) over all examples of `split`, in nats.

    Every distinct context, of 2^24 examples at a time, goes through the model once, in the model's dtype; sums are
    float64. The result is exact up to rounding, and infinite where the model gives a target probability 0. A model on
    the CPU that computes with `charlm.ops` is evaluated by `charlm.engine` if that knows it.

    Args:
        model: any language model.
        split: a split of a dataset, or its `distinct()`, which a caller that evaluates often computes once.
        processes: `charlm.distributed.current()` shares the work among all of them, which then all call this and get
            the same result.

    Raises:
        ValueError: the split has no examples.
    """
    if isinstance(split, Split):
        if len(split) > _EXAMPLES_AT_ONCE:
            parts = split.parts(_EXAMPLES_AT_ONCE)
            return sum(evaluate(model, part, processes) * len(part) for part in parts) / len(split)
        split = split.distinct(with_index=False)
    distinct = split
    examples = int(distinct.counts.values.sum())
    if examples == 0:
        raise ValueError("split has no examples to evaluate")
    if processes.size == 1:
        return _mean_nll(model, distinct, examples)
    part = distinct.part(processes.shard(len(distinct)))
    part_examples = int(part.counts.values.sum())
    total = _mean_nll(model, part, part_examples) * part_examples if part_examples > 0 else 0.0
    return processes.sum(total) / examples


def _mean_nll(model: LanguageModel, distinct: Distinct, examples: int) -> float:
    parameters = engine_parameters(model)
    if parameters is not None and _engine_takes(model, parameters, distinct):
        return engine.evaluate_full(
            parameters,
            distinct.contexts[:, -model.context_length :],
            distinct.counts.row_ptr,
            distinct.counts.targets,
            distinct.counts.values,
            softcap=getattr(model, "softcap", None),
        ).item()
    rows_at_once = max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // model.vocab_size))
    total = 0.0
    for start in range(0, len(distinct), rows_at_once):
        rows = slice(start, start + rows_at_once)
        logits = model(distinct.contexts[rows].to(model.device)).cpu().double()
        counts = distinct.counts[rows]
        losses = torch.where(counts > 0, -counts * torch.log_softmax(logits, dim=-1), 0.0)
        total += losses.sum().item()
    return total / examples


def _engine_takes(model: LanguageModel, parameters: list[Tensor], distinct: Distinct) -> bool:
    """Examples that do not fit the model are left to it: it says what is wrong with them."""
    length = distinct.contexts.shape[1]
    fits = length == model.context_length or (model.reads_longer_contexts and length > model.context_length)
    known = all(p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64) for p in parameters)
    return model.backend == "ops" and known and fits and distinct.counts.shape[1] == model.vocab_size
