"""Whole steps in C++ or CUDA: the engine, and on a GPU what takes over where its kernel would be slower."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from charlm import engine
from charlm.backends.base import why_no_kernels
from charlm.backends.examples import all_counts, batches
from charlm.backends.graphed import GraphedBackend
from charlm.backends.ways import Way, way_on_gpu
from charlm.data import Split
from charlm.distributed import ALONE, Processes
from charlm.models import LanguageModel, engine_parameters
from charlm.optimizers import OptimizerOptions, state_names


class FusedBackend:
    """All steps of a call without returning to Python: `charlm.engine`; on a GPU, large ones by `GraphedBackend`."""

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
        why = why_no_kernels(model.device)
        if why is not None:
            raise ValueError(f"backend 'fused' cannot be used: {why}")
        parameters = engine_parameters(model)
        if parameters is None:
            raise ValueError(f"backend 'fused' trains an MLP or a NeuralBigram, got a {type(model).__name__}")
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        if frozen:
            raise ValueError(
                f"backend 'fused' trains all parameters of a model, but here {', '.join(frozen)} must not change: use "
                "'ops', which is the default then"
            )
        self.model = model.computing_with("ops")
        self._parameters = parameters
        self._optimizer = optimizer
        self._options = options
        self._softcap = getattr(model, "softcap", None)
        self._split = split
        # What the model reads of which examples, and where.
        self._examples = split, model.context_length, model.device
        self._ways: dict[int | None, Way] = {}
        shapes = tuple(tuple(parameter.shape) for parameter in parameters)
        # Of the split, which has no equal, the group keeps the object.
        kind = (type(model), shapes, parameters[0].dtype, parameters[0].device, options.optimizer)
        self._kind = (*kind, state_names(options), split)

    def run(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor:
        if self.way(_batch_size(batch_indices)) == "graph":
            return self._graphed.run(batch_indices, learning_rates)
        state, first_step = self._state()
        own: dict[str, Any] = {"softcap": self._softcap, "first_step": first_step}
        if batch_indices is None:
            counts = all_counts(*self._examples)
            losses = engine.train_full_steps(self._parameters, state, *counts, learning_rates, self._options, **own)
        else:
            contexts, targets, indices, context_index = batches(*self._examples, batch_indices)
            own["context_index"] = context_index
            losses = engine.train_steps(
                self._parameters, state, contexts, targets, indices, learning_rates, self._options, **own
            )
        self._made(learning_rates)
        return losses

    def way(self, batch_size: int | None) -> Way:
        """Who makes a step on so many examples, or for None on the whole split: the engine, or the ops in a graph."""
        if self.model.device.type == "cpu":
            return "engine"
        if batch_size not in self._ways:
            rows = len(self._split.kept_distinct(with_index=False)) if batch_size is None else batch_size
            self._ways[batch_size] = way_on_gpu(self.model, rows)
        return self._ways[batch_size]

    def group(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Hashable:
        """Backends for which this is the same can make their steps together, in `run_group`."""
        batch_size = _batch_size(batch_indices)
        if self.way(batch_size) == "graph":
            return self  # which is the same for no other
        return (*self._kind, batch_size, len(learning_rates))

    @staticmethod
    def run_group(
        backends: Sequence[FusedBackend], batch_indices: Sequence[Tensor | None], learning_rates: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """What `run` does, by all backends of a group at once; the losses are on the CPU.

        Where this raises, no backend has made a step.
        """
        examples = backends[0]._examples
        states, first_steps = zip(*(backend._state() for backend in backends), strict=True)
        parameters = [backend._parameters for backend in backends]
        rates = torch.stack(list(learning_rates))
        options = [backend._options for backend in backends]
        own: dict[str, Any] = {"softcaps": [backend._softcap for backend in backends], "first_steps": first_steps}
        of_each = [batch for batch in batch_indices if batch is not None]
        if not of_each:
            counts = all_counts(*examples)
            losses = engine.train_full_population(parameters, states, *counts, rates, options, **own)
        else:
            contexts, targets, indices, context_index = batches(*examples, torch.stack(of_each))
            losses = engine.train_population(
                parameters, states, contexts, targets, indices, rates, options, context_index=context_index, **own
            )
        for backend, own_rates in zip(backends, learning_rates, strict=True):
            backend._made(own_rates)
        return losses.cpu().unbind()

    @cached_property
    def _graphed(self) -> GraphedBackend:
        return GraphedBackend(self.model, self._optimizer, self._split, self._options)

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


def _batch_size(batch_indices: Tensor | None) -> int | None:
    return None if batch_indices is None else batch_indices.shape[-1]
