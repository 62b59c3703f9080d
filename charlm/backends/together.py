"""Steps of many backends in as few calls as there can be."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from charlm.backends.base import Backend
from charlm.backends.fused import FusedBackend


def run_together(
    backends: Sequence[Backend], batch_indices: Sequence[Tensor | None], learning_rates: Sequence[Tensor]
) -> list[Tensor | Exception]:
    """What `run` of each backend does with its own batches and rates, to the bit.

    The engine makes the steps of all models of one shape, on one split, in one call; others come one after another.

    Args:
        backends: each once.
        batch_indices, learning_rates: of each backend, as in `Backend.run`.

    Returns:
        The losses of each, or what its `run` has raised, which keeps no other from its steps.
    """
    outcomes: list[Tensor | Exception | None] = [None] * len(backends)
    groups: dict[Hashable, list[int]] = {}
    fused = {number: backend for number, backend in enumerate(backends) if isinstance(backend, FusedBackend)}
    for number, backend in fused.items():
        groups.setdefault(backend.group(batch_indices[number], learning_rates[number]), []).append(number)
    for numbers in groups.values():
        if len(numbers) > 1:
            batches, rates = (
                [batch_indices[number] for number in numbers],
                [learning_rates[number] for number in numbers],
            )
            try:
                losses = FusedBackend.run_group([fused[number] for number in numbers], batches, rates)
            except (ValueError, RuntimeError):
                # An option of one of them, or memory for all: by itself, each says what is wrong with it.
                continue
            for number, own in zip(numbers, losses, strict=True):
                outcomes[number] = own
    return [
        _outcome(backend, batch_indices[number], learning_rates[number]) if outcome is None else outcome
        for number, (backend, outcome) in enumerate(zip(backends, outcomes, strict=True))
    ]


def _outcome(backend: Backend, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor | Exception:
    try:
        return backend.run(batch_indices, learning_rates)
    except Exception as error:
        return error
