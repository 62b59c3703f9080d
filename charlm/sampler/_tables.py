"""What the model says of contexts, as probabilities to draw from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from charlm.models import LanguageModel

# Contexts that the model sees at a time: 256, or fewer of a large vocabulary, as a single text asks for one after the
# other.
_MAX_BATCH_SIZE, _MAX_LOGITS = 256, 1 << 13

# Models are evaluated by one thread at a time: `torch.set_num_threads` is for the whole process.
_evaluating = threading.RLock()


def tables(
    model: LanguageModel, contexts: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Iterator[Tensor]:
    """The `probabilities` of contexts (M, T), some rows (K, V) at a time."""
    batch_size = max(16, min(_MAX_BATCH_SIZE, _MAX_LOGITS // model.vocab_size))
    for batch in contexts.split(batch_size):
        yield probabilities(_logits(model, batch, batch_size), temperature, top_k, top_p)


def probabilities(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None = None) -> Tensor:
    """softmax(logits / temperature) over the most probable of each row of `logits` (N, V), 0 elsewhere: float64, CPU.

    These are the `top_k` largest, and of them the fewest that have `top_p` of their probability together; the first
    ones of equals. Temperature 0 is its limit, all for the first one of the largest.

    Raises:
        ValueError: a row has NaN, +inf, or nothing but -inf.

    Source of top_p: Holtzman et al. 2020, "The curious case of neural text degeneration".
    """
    logits = logits.to("cpu", torch.float64)
    highest = logits.max(dim=1, keepdim=True).values
    if not highest.isfinite().all():
        raise ValueError("the model's logits are not finite: was it trained to a finite loss?")
    if temperature == 0.0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)
    # As a float: a tensor takes no integer beyond 64 bits.
    weights = ((logits - highest) / float(temperature)).exp()
    if (top_k is not None and top_k < logits.shape[1]) or top_p is not None:
        ranked = logits.argsort(dim=1, descending=True, stable=True)
        weights.scatter_(1, ranked[:, top_k:] if top_k is not None else ranked[:, :0], 0.0)
        if top_p is not None:
            ordered = weights.gather(1, ranked)
            before = ordered.cumsum(dim=1) - ordered
            ordered[before >= top_p * ordered.sum(dim=1, keepdim=True)] = 0.0
            weights.scatter_(1, ranked, ordered)
    return weights / weights.sum(dim=1, keepdim=True)


def _logits(model: LanguageModel, contexts: Tensor, batch_size: int) -> Tensor:
    """The logits (N, V) of N <= batch_size contexts (N, T).

    The model always sees `batch_size` of them: a matrix product may round differently with another number of rows, and
    what follows a context must not depend on which others are asked for.
    """
    batch = contexts.new_zeros(batch_size, contexts.shape[1])
    batch[: len(contexts)] = contexts
    with torch.no_grad(), _one_thread():
        logits: Tensor = model(batch.to(model.device))
    return logits[: len(contexts)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """A matrix product may round differently with another number of threads, and a draw then fall the other way."""
    with _evaluating:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
