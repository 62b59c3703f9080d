"""Steps under autograd: in plain PyTorch, compiled by it, or with `charlm.ops`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from charlm import optimizers
from charlm.backends.base import why_no_kernels
from charlm.data import Distinct, Split
from charlm.distributed import ALONE, Processes
from charlm.models import LanguageModel
from charlm.optimizers import OptimizerOptions

# Logits of a full batch in memory at a time.
_LOGITS_AT_ONCE = 1 << 21


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
        total = self._set_gradients(parts, reduction, divisor)
        self._step()
        return total

    def _set_gradients(self, parts: Iterable[tuple[Tensor, Tensor]], reduction: str, divisor: int) -> Tensor:
        """Gives the parameters the clipped gradient of that loss in the place of any other; returns the loss."""
        for group in self._optimizer.param_groups:
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
            self._distinct = self._split.kept_distinct(with_index=False)
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
