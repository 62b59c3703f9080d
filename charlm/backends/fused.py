"""Whole steps in C++: the engine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from charlm import engine
from charlm.data import Split
from charlm.distributed import ALONE, Processes
from charlm.models import LanguageModel, engine_parameters
from charlm.optimizers import OptimizerOptions, state_names

# Up to so many examples their contexts are looked up once, which takes some 50 ns and 4 bytes for each of them; from
# there on in every batch.
_INDEXED_EXAMPLES = 1 << 24


class FusedBackend:
    """All steps of a call in C++: `charlm.engine`."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        split: Split,
        options: OptimizerOptions,
        processes: Processes = ALONE,
    ) -> None:
        if processes.size > 1:
            raise ValueError(
                f"backend 'fused' makes whole steps in one process, but there are {processes.size}: use 'ops', which "
                "is the default then"
            )
        if model.device.type != "cpu":
            raise ValueError(
                f"backend 'fused' trains on the CPU, but the model is on {model.device}: use 'ops' or 'eager'"
            )
        parameters = engine_parameters(model)
        if parameters is None:
            raise ValueError(f"backend 'fused' trains an MLP or a NeuralBigram, got a {type(model).__name__}")
        self.model = model.computing_with("ops")
        self._parameters = parameters
        self._optimizer = optimizer
        self._options = options
        self._softcap = getattr(model, "softcap", None)
        self._split = split
        self._context_length = model.context_length
        self._vocab_size = model.vocab_size
        shapes = tuple(tuple(parameter.shape) for parameter in parameters)
        # Of the split, which has no equal, the group keeps the object.
        kind = (type(model), shapes, parameters[0].dtype, parameters[0].device, options.optimizer)
        self._kind = (*kind, state_names(options), split)

    def run(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor:
        state, first_step = self._state()
        if batch_indices is None:
            losses = engine.train_full_steps(
                self._parameters,
                state,
                *self._counts,
                learning_rates,
                self._options,
                softcap=self._softcap,
                first_step=first_step,
            )
        else:
            contexts, targets, indices, context_index = self._examples(batch_indices)
            losses = engine.train_steps(
                self._parameters,
                state,
                contexts,
                targets,
                indices,
                learning_rates,
                self._options,
                context_index=context_index,
                softcap=self._softcap,
                first_step=first_step,
            )
        self._made(learning_rates)
        return losses

    def group(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Hashable:
        """Backends for which this is the same can make their steps together, in `run_group`."""
        batch_size = None if batch_indices is None else batch_indices.shape[1]
        return (*self._kind, batch_size, len(learning_rates))

    @staticmethod
    def run_group(
        backends: Sequence[FusedBackend], batch_indices: Sequence[Tensor | None], learning_rates: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """What `run` does, by all backends of a group at once; the losses are on the CPU.

        Where this raises, no backend has made a step.
        """
        first = backends[0]
        states, first_steps = zip(*(backend._state() for backend in backends), strict=True)
        parameters = [backend._parameters for backend in backends]
        rates = torch.stack(list(learning_rates))
        options = [backend._options for backend in backends]
        own: dict[str, Any] = {"softcaps": [backend._softcap for backend in backends], "first_steps": first_steps}
        batches = [batch for batch in batch_indices if batch is not None]
        if not batches:
            losses = engine.train_full_population(parameters, states, *first._counts, rates, options, **own)
        else:
            contexts, targets, indices, context_index = first._examples(torch.stack(batches))
            losses = engine.train_population(
                parameters, states, contexts, targets, indices, rates, options, context_index=context_index, **own
            )
        for backend, own_rates in zip(backends, learning_rates, strict=True):
            backend._made(own_rates)
        return losses.cpu().unbind()

    def _state(self) -> tuple[list[Tensor], int]:
        """The optimizer's state in the order of the engine, and how many steps it has made."""
        states = [self._optimizer.state[parameter] for parameter in self._parameters]
        first_step = int(states[0]["step"]) if "step" in states[0] else 0
        return [entry[name] for name in state_names(self._options) for entry in states], first_step

    def _made(self, learning_rates: Tensor) -> None:
        """Leaves the optimizer as it would be, had it made the steps."""
        for parameter in self._parameters:
            entry = self._optimizer.state[parameter]
            if "step" in entry:
                entry["step"] += len(learning_rates)
        for group in self._optimizer.param_groups:
            group["lr"] = float(learning_rates[-1])

    def _examples(self, batch_indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Contexts and targets, which of them each step takes, and each example's context where these are distinct."""
        if len(self._split) <= _INDEXED_EXAMPLES:
            return self._indexed[0], self._indexed[1], batch_indices, self._indexed[2]
        contexts, targets = self._split.batch(batch_indices.flatten())
        return self._read(contexts), targets, torch.arange(len(targets), device="cpu").view_as(batch_indices), None

    @cached_property
    def _indexed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct contexts, the target of every example, and its context."""
        distinct = self._split.kept_distinct()
        return self._read(distinct.contexts).int(), self._split.targets, distinct.index

    @cached_property
    def _counts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Distinct contexts; row_ptr, targets and counts of their compressed rows."""
        if self._context_length < self._split.context_length:
            distinct = self._split.kept_distinct()
            last = self._read(distinct.contexts)[distinct.index.long()].flatten()
            return _count_pairs(last, self._split.targets, self._vocab_size)
        distinct = self._split.kept_distinct(with_index=False)
        return distinct.contexts, distinct.counts.row_ptr, distinct.counts.targets, distinct.counts.values

    def _read(self, contexts: Tensor) -> Tensor:
        """What the model reads of them: a bigram their last token."""
        return contexts[:, -self._context_length :]


def _count_pairs(tokens: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How often each target follows each token: contexts (U, 1), row_ptr, targets and counts of compressed rows."""
    pairs, counts = (tokens.long() * vocab_size + targets).unique(return_counts=True)
    contexts, lengths = (pairs // vocab_size).unique(return_counts=True)
    row_ptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return contexts.unsqueeze(1), row_ptr, pairs % vocab_size, counts
