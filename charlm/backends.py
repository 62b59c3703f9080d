"""What executes training steps. A backend is one entry in `BACKENDS`; the trainer knows nothing else about it.

Every backend gets the same batches and learning rates and updates the same parameters and optimizer state in place.
Of several processes each computes the gradient of its part of a batch, and all make the same update with the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from charlm import engine, optimizers
from charlm.data import Distinct, Split
from charlm.distributed import ALONE, Processes
from charlm.models import LanguageModel, engine_parameters
from charlm.ops._extension import _C
from charlm.optimizers import OptimizerOptions, state_names

# Up to so many examples their contexts are looked up once, which takes some 50 ns and 4 bytes for each of them; from
# there on in every batch.
_INDEXED_EXAMPLES = 1 << 24
# Logits of a full batch in memory at a time.
_LOGITS_AT_ONCE = 1 << 21


class Backend(Protocol):
    """Runs training steps.

    Args:
        model: its parameters are updated in place.
        optimizer: `torch.optim.SGD` or `AdamW` with initialised state, which is updated in place.
        split: the training examples.
        options: those that the optimizer was created with.
        processes: those that train the model together.

    Attributes:
        model: as this backend computes it; its parameters are those of the model that was given, which stays as it is.
    """

    model: LanguageModel

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        split: Split,
        options: OptimizerOptions,
        processes: Processes = ALONE,
    ) -> None: ...

    def run(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor:
        """S steps, one after the other.

        Args:
            batch_indices: (S, B) int64 on the CPU, the examples of every step, the same in all processes; None takes
                the whole split each time.
            learning_rates: (S,) float64 on the CPU.

        Returns:
            The mean loss of every step's batch before its update: (S,) in the model's dtype, on its device.
        """
        ...


class EagerBackend:
    """Plain PyTorch: the model's loss, `backward`, `optimizer.step`.

    The whole split as a batch is its distinct contexts, with the counts of their targets over N as unnormalised class
    probabilities: sum_c sum_v -(counts[c, v] / N) log p(v | c) is exactly the mean loss of all examples.

    Of several processes each has a part of the rows, and its loss is their sum over B: then the sum of the gradients is
    that of the mean loss, however unequal the parts are.
    """

    model_backend: ClassVar[str] = "eager"

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        split: Split,
        options: OptimizerOptions,
        processes: Processes = ALONE,
    ) -> None:
        self.model = model.computing_with(self.model_backend)
        self._loss = self._prepare()
        self._optimizer = optimizer
        self._split = split
        self._options = options
        self._processes = processes
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._distinct: Distinct | None = None
        self._only_part: list[tuple[Tensor, Tensor]] | None = None

    def _prepare(self) -> Callable[..., Tensor]:
        """Returns what computes the model's loss; ValueError where the backend cannot."""
        loss: Callable[..., Tensor] = self.model.loss
        return loss

    def run(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor:
        example = self._parameters[0]
        rates = learning_rates.tolist()
        steps: Iterable[Iterable[tuple[Tensor, Tensor]]]
        if batch_indices is None:
            steps = (self._full_batch() for _ in rates)
            reduction, divisor = "sum", 1
        else:
            batch_size = batch_indices.shape[1]
            own = batch_indices[:, self._processes.shard(batch_size)]
            contexts, targets = self._split.batch(own.flatten())
            contexts = contexts.to(example.device).unflatten(0, own.shape)
            targets = targets.to(example.device).unflatten(0, own.shape)
            steps = ([batch] for batch in zip(contexts.unbind(), targets.unbind(), strict=True))
            reduction, divisor = ("mean", 1) if self._processes.size == 1 else ("sum", batch_size)
        losses = [self._update(parts, reduction, divisor, rate) for parts, rate in zip(steps, rates, strict=True)]
        return torch.stack(losses) if losses else example.new_empty(0)

    def _update(
        self, parts: Iterable[tuple[Tensor, Tensor]], reduction: str, divisor: int, learning_rate: float
    ) -> Tensor:
        """One step on the sum of the losses of `parts`, of all processes, over `divisor`; returns that loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
            for parameter in group["params"]:
                parameter.grad = None
        total = None
        for contexts, targets in parts:
            if len(targets) == 0:  # a batch smaller than the number of processes
                continue
            loss = self._loss(contexts, targets, reduction)
            if divisor != 1:
                loss = loss / divisor
            self._add_gradients(loss)
            total = loss.detach() if total is None else total + loss.detach()
        if total is None:
            total = self._parameters[0].new_zeros(())
        total = self._processes.sum_gradients(self._parameters, total)
        if self._options.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._options.max_grad_norm)
        self._step()
        return total

    def _add_gradients(self, loss: Tensor) -> None:
        """Adds the gradients of the loss to those that the parameters have."""
        loss.backward()

    def _step(self) -> None:
        """Updates the parameters with their gradients."""
        self._optimizer.step()

    def _full_batch(self) -> Iterable[tuple[Tensor, Tensor]]:
        """This process' distinct contexts (U, T), their target probabilities (U, V), in parts that fit into memory."""
        if self._distinct is None:
            self._distinct = self._split.distinct(with_index=False)
            own = self._processes.shard(len(self._distinct))
            if (own.stop - own.start) * self.model.vocab_size <= _LOGITS_AT_ONCE:
                self._only_part = list(self._parts(self._distinct))
        return self._parts(self._distinct) if self._only_part is None else self._only_part

    def _parts(self, distinct: Distinct) -> Iterator[tuple[Tensor, Tensor]]:
        example = self._parameters[0]
        rows_at_once = max(1, _LOGITS_AT_ONCE // self.model.vocab_size)
        own = self._processes.shard(len(distinct))
        for start in range(own.start, own.stop, rows_at_once):
            rows = slice(start, min(start + rows_at_once, own.stop))
            probabilities = distinct.counts[rows].double() / len(self._split)
            yield distinct.contexts[rows].to(example.device), probabilities.to(example.device, example.dtype)


class CompileBackend(EagerBackend):
    """The eager backend with the model's loss, forward and backward, under `torch.compile`."""

    def _prepare(self) -> Callable[..., Tensor]:
        return torch.compile(super()._prepare(), dynamic=False, fullgraph=True)


class OpsBackend(EagerBackend):
    """The eager backend with `charlm.ops` in the model, and with less of Python around them."""

    model_backend = "ops"

    def _prepare(self) -> Callable[..., Tensor]:
        why = why_no_kernels(self.model.device)
        if why is not None:
            raise ValueError(f"backend 'ops' cannot be used: {why}")
        return super()._prepare()

    def _add_gradients(self, loss: Tensor) -> None:
        # For a small model `backward` takes half as long again, to hand each gradient to its parameter.
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is None:
                continue
            if self._options.max_grad_norm is not None:
                # Clipping multiplies in place, and two parameters may share a gradient.
                gradient = gradient.clone(memory_format=torch.contiguous_format)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _step(self) -> None:
        optimizers.step(self._optimizer, self._options)


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

    def run(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor:
        states = [self._optimizer.state[parameter] for parameter in self._parameters]
        state = [entry[name] for name in state_names(self._options) for entry in states]
        first_step = int(states[0]["step"]) if "step" in states[0] else 0
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
        for entry in states:
            if "step" in entry:
                entry["step"] += len(learning_rates)
        for group in self._optimizer.param_groups:
            group["lr"] = float(learning_rates[-1])
        return losses

    def _examples(self, batch_indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Contexts and targets, which of them each step takes, and each example's context where these are distinct."""
        if len(self._split) <= _INDEXED_EXAMPLES:
            return self._indexed[0], self._indexed[1], batch_indices, self._indexed[2]
        contexts, targets = self._split.batch(batch_indices.flatten())
        return self._read(contexts), targets, torch.arange(len(targets), device="cpu").view_as(batch_indices), None

    @cached_property
    def _indexed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct contexts, the target of every example, and its context."""
        return self._read(self._distinct.contexts).int(), self._split.targets, self._distinct.index

    @cached_property
    def _counts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Distinct contexts; row_ptr, targets and counts of their compressed rows."""
        if self._context_length < self._split.context_length:
            distinct = self._distinct
            last = self._read(distinct.contexts)[distinct.index.long()].flatten()
            return _count_pairs(last, self._split.targets, self._vocab_size)
        distinct = self._split.distinct(with_index=False)
        return distinct.contexts, distinct.counts.row_ptr, distinct.counts.targets, distinct.counts.values

    @cached_property
    def _distinct(self) -> Distinct:
        return self._split.distinct()

    def _read(self, contexts: Tensor) -> Tensor:
        """What the model reads of them: a bigram their last token."""
        return contexts[:, -self._context_length :]


def why_no_kernels(device: torch.device) -> str | None:
    """Why `charlm.ops` cannot compute on a device, and what to do, in one sentence; None where they can.

    The first time it is asked of a GPU, code is loaded there.
    """
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        return _C.why_no_kernels(torch.cuda.current_device() if device.index is None else device.index)
    return f"charlm has no kernels for {device}; backend 'eager', which is plain PyTorch, works there"


def default_backend(model: LanguageModel, processes: Processes) -> str:
    """The name of the fastest backend that takes the model where it is."""
    if why_no_kernels(model.device) is not None:
        return "eager"
    parameters = engine_parameters(model)
    known = parameters is not None and parameters[0].dtype in (torch.float32, torch.float64)
    return "fused" if known and processes.size == 1 and model.device.type == "cpu" else "ops"


def _count_pairs(tokens: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How often each target follows each token: contexts (U, 1), row_ptr, targets and counts of compressed rows."""
    pairs, counts = (tokens.long() * vocab_size + targets).unique(return_counts=True)
    contexts, lengths = (pairs // vocab_size).unique(return_counts=True)
    row_ptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return contexts.unsqueeze(1), row_ptr, pairs % vocab_size, counts


BACKENDS: dict[str, type[Backend]] = {
    "eager": EagerBackend,
    "compile": CompileBackend,
    "ops": OpsBackend,
    "fused": FusedBackend,
}
