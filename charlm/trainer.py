"""The training loop: which batch, which learning rate, how far; the backend executes the steps."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from charlm import distributed, optimizers
from charlm._rules import check, check_type, shown
from charlm.backends import BACKENDS, default_backend, why_no_kernels
from charlm.batches import BatchSampler
from charlm.data import Dataset
from charlm.evaluation import evaluate
from charlm.interrupts import deferred_interrupt
from charlm.models import LanguageModel
from charlm.optimizers import OptimizerOptions
from charlm.schedules import Schedule

# Up to so many examples all of them are evaluated while a model trains, and of more every k-th, as many at most: their
# mean has a standard error of 0.002 nats or so.
_EVALUATED_EXAMPLES = 1 << 20
# Steps go to the backend in chunks of about this long: the interval of progress reports and of looking for Ctrl-C.
_CHUNK_SECONDS = 0.2


class NonFiniteLossError(ArithmeticError):
    """The loss of a training step is infinite or NaN."""


class Trainer:
    """Trains a model on the `train` split of a dataset.

    Batches, learning rates and updates are the same for every backend, so that loss curves agree up to rounding.
    The model is trained in place, and computes as it did before when it is called: its own `backend` says with whose
    ops, that of the trainer who executes the steps.

    In a process group (`torch.distributed.init_process_group`) all processes train one model together: each makes the
    same trainer, and calls `run`, `evaluate` and `load_state_dict` as the others do. They start from the weights of
    rank 0. Each computes its part of every batch, of which `batch_size` is the size in all processes together, and all
    have the losses and parameters that one process would have, up to rounding; saving is for one of them.

    Args:
        model: `NeuralBigram` or `MLP`.
        dataset: from `charlm.data.load`, with the model's vocabulary size and context length.
        learning_rate: base rate of the schedule, positive.
        optimizer: "sgd" (`momentum`, coupled `weight_decay`, as `torch.optim.SGD`) or "adamw" (`betas`, `eps`,
            decoupled `weight_decay`, as `torch.optim.AdamW`).
        schedule: "constant", "step", "cosine" or "linear" with `total_steps`, `warmup_steps`, `milestones` and
            `decay_factor`: see `charlm.schedules.Schedule`.
        max_grad_norm: clips the norm of the whole gradient to this, or None.
        batch_size: B examples drawn with replacement, or "full": the whole split in every step.
        backend: "eager", "compile", "ops" or "fused" (one process, no parameter frozen); None is "fused" where that can
            be, otherwise "ops", and "eager", with a warning, on devices that the ops have no kernels for.
        seed: of the batches; initial weights are the model's own matter.
        device: where to move the model; None leaves it where it is.

    Attributes:
        step: steps done so far.
        losses: what the last call of `run` has returned, or would have returned where something ended it early: the
            loss of every step that it did.
        backend: the name of the backend.
        optimizer: the `torch.optim` optimizer.
        schedule: the learning rate of every step.

    Raises:
        ValueError: an argument is out of range, model and dataset do not fit each other, or processes were given
            different data, batch sizes or seeds.
    """

    def __init__(
        self,
        model: LanguageModel,
        dataset: Dataset,
        *,
        learning_rate: float,
        optimizer: str = "sgd",
        momentum: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        schedule: str = "constant",
        total_steps: int | None = None,
        warmup_steps: int = 0,
        milestones: Sequence[int] | None = None,
        decay_factor: float = 0.1,
        max_grad_norm: float | None = None,
        batch_size: int | str = 32,
        backend: str | None = None,
        seed: int = 42,
        device: torch.device | str | None = None,
    ) -> None:
        check_type("model", model, LanguageModel)
        check_type("dataset", dataset, Dataset)
        check_type("device", device, str, torch.device, type(None))
        _check_fit(model, dataset)
        if backend is not None and (not isinstance(backend, str) or backend not in BACKENDS):
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {shown(backend)}")
        check("seed", seed)
        check("batch_size", batch_size)
        self._batches = None if batch_size == "full" else BatchSampler(len(dataset.train), int(batch_size), seed)
        options = OptimizerOptions(
            optimizer=optimizer,  # type: ignore[arg-type]  # any str: it is checked
            momentum=momentum,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
        )
        self.schedule = Schedule(schedule, learning_rate, total_steps, warmup_steps, milestones, decay_factor)

        self._processes = distributed.current()
        self.model = _moved(model, device)
        why = why_no_kernels(self.model.device)
        if why is not None:
            # Nobody could call it there, `charlm.sample` for one.
            self.model.backend = "eager"
        self.backend = backend or default_backend(self.model, self._processes)
        if why is not None and backend is None:
            warnings.warn(f"training with backend 'eager': {why}", stacklevel=2)
        self.dataset = dataset
        self.optimizer = optimizers.create(self.model, options, learning_rate)
        self._backend = BACKENDS[self.backend](self.model, self.optimizer, dataset.train, options, self._processes)
        self._processes.check_same(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            examples=len(dataset.train),
            batch_size=len(dataset.train) if batch_size == "full" else int(batch_size),
            seed=seed,
        )
        self._processes.copy_from_first(self.model.state_dict().values())
        self._chunk_steps = 1
        self.step = 0
        self.losses = self._no_losses()

    def run(self, steps: int, on_progress: Callable[[int, float], None] | None = None) -> Tensor:
        """Trains `steps` more steps.

        Args:
            steps: at least 0. One call or many: the result is the same bit for bit.
            on_progress: called as `on_progress(step, loss)` with the number of steps done and the loss of the last
                one, a few times per second at most, and after the last step.

        Returns:
            The loss of every step's batch before its update: (steps,) in the model's dtype, on the CPU.

        Raises:
            NonFiniteLossError: a loss is infinite or NaN; the parameters are useless, go back to a checkpoint.
            KeyboardInterrupt: Ctrl-C, raised between two steps: model, optimizer, `step` and `losses` fit together.
        """
        check("steps", steps)
        chunks = [self._no_losses()]
        end = self.step + steps
        reported = time.monotonic()
        with deferred_interrupt() as interrupt:
            try:
                while self.step < end:
                    started = time.monotonic()
                    chunks.append(self._run_chunk(min(self._chunk_steps, end - self.step)))
                    now = time.monotonic()
                    # Processes stop at the same step: Ctrl-C is pressed for all of them.
                    signum, self._chunk_steps = self._processes.largest(
                        interrupt.pending, next_chunk(len(chunks[-1]), now - started)
                    )
                    if on_progress is not None and (self.step == end or report_is_due(now - reported)):
                        on_progress(self.step, chunks[-1][-1].item())
                        reported = now
                    if signum:
                        interrupt.deliver(signum)
            finally:
                self.losses = torch.cat(chunks)
        return self.losses

    def evaluate(self, split: str) -> float:
        """The mean negative log-likelihood, in nats, of "train", "dev" or "test".

        It is that of all examples of a split of up to 2^20, and of a larger one that of every k-th: see
        `evaluation_step`. `charlm.evaluate` measures all of any split.

        It is computed by whom the steps are: in plain PyTorch with the backends "eager" and "compile".
        """
        if not isinstance(split, str) or split not in ("train", "dev", "test"):
            raise ValueError(f"split must be one of train, dev, test, got {split!r}")
        distinct = getattr(self.dataset, split).kept_distinct(self.evaluation_step(split), with_index=False)
        with deferred_interrupt() if self._processes.size > 1 else nullcontext():
            return evaluate(self._backend.model, distinct, self._processes)

    def evaluation_step(self, split: str) -> int:
        """k, where `evaluate` looks at the examples 0, k, 2 k, ... of a split: 1 is all of them."""
        return -(-len(getattr(self.dataset, split)) // _EVALUATED_EXAMPLES)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that training changes: `step`, and the tensors of `model`, `optimizer` and `batches`."""
        return {
            "step": self.step,
            **{
                part: {name: value.detach().clone() for name, value in tensors.items()}
                for part, tensors in self._tensors().items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken, bit for bit if the arguments of the trainer are the same.

        Raises:
            ValueError: a tensor is missing, unexpected, or has another shape or dtype; nothing was changed.
        """
        check_type("state", state, dict)
        own = self._tensors()
        if state.keys() != {"step", *own}:
            raise ValueError(f"state must have the keys {sorted(['step', *own])}, got {sorted(state)}")
        if not isinstance(state["step"], int) or state["step"] < 0:
            raise ValueError(f"state 'step' must be an integer >= 0, got {state['step']!r}")
        for part, tensors in own.items():
            _check_same_structure(part, state[part], tensors)
        for name in own["optimizer"]:
            if name.endswith(".step"):
                _check_steps(name, state["optimizer"][name], state["step"])
        if self._batches is not None:
            self._batches.load_state_dict(state["batches"], state["step"])
        with torch.no_grad():
            for part in ("model", "optimizer"):
                for name, tensor in own[part].items():
                    tensor.copy_(state[part][name])
        self.step = state["step"]

    def _no_losses(self) -> Tensor:
        return torch.empty(0, dtype=next(self.model.parameters()).dtype, device="cpu")

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that training changes but `step`: model and optimizer not as copies."""
        return {
            "model": self.model.state_dict(),
            "optimizer": optimizers.named_state(self.model, self.optimizer),
            "batches": {} if self._batches is None else self._batches.state_dict(),
        }

    def _run_chunk(self, steps: int) -> Tensor:
        batches, rates = self._next_steps(min(steps, self._most_steps()))
        try:
            outcome: Tensor | Exception = self._backend.run(batches, rates)
        except Exception as error:
            outcome = error
        return self._made(outcome)

    # A chunk in parts: charlm.Population has the chunks of many trainers made in one call.

    def _most_steps(self) -> int:
        """How many steps a chunk can have."""
        return sys.maxsize if self._batches is None else self._batches.rows_left(self.step)

    def _next_steps(self, steps: int) -> tuple[Tensor | None, Tensor]:
        """What the backend makes the next steps with: batches and learning rates."""
        batches = None if self._batches is None else self._batches.read(self.step, steps)
        return batches, self.schedule.range(self.step, steps)

    def _made(self, outcome: Tensor | Exception) -> Tensor:
        """Counts the steps that the backend has made; returns their losses, or raises what is wrong with them."""
        first = self.step
        if isinstance(outcome, Exception):
            # How torch refuses a rate, or what follows from it, that the parameters' dtype cannot hold.
            if not isinstance(outcome, RuntimeError) or "without overflow" not in str(outcome):
                raise outcome
            raise NonFiniteLossError(
                f"the steps from {first} on overflow at learning rate {self.schedule(first):g}: lower learning_rate"
            ) from outcome
        losses = outcome.cpu()
        self.step += len(losses)
        finite = losses.isfinite()
        if not finite.all():
            bad = int(finite.logical_not().nonzero()[0])
            raise NonFiniteLossError(
                f"the loss of step {first + bad} is {losses[bad].item()}, at learning rate "
                f"{self.schedule(first + bad):g}: lower learning_rate, or set max_grad_norm"
            )
        return losses


def _check_fit(model: LanguageModel, dataset: Dataset) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model has no parameters to train: a {type(model).__name__} is not trained in steps")
    if model.vocab_size != len(dataset.vocabulary):
        raise ValueError(
            f"model has vocab_size={model.vocab_size}, but the vocabulary of the dataset has "
            f"{len(dataset.vocabulary)} {dataset.vocabulary.tokens_are}"
        )
    if model.context_length != dataset.context_length and not model.reads_longer_contexts:
        raise ValueError(
            f"model has context_length={model.context_length}, but the dataset has {dataset.context_length}"
        )
    if len(dataset.train) == 0:
        raise ValueError("dataset has no training examples")


def _moved(model: LanguageModel, device: torch.device | str | None) -> LanguageModel:
    try:
        with warnings.catch_warnings():
            # Of names that are no longer devices: they are errors here.
            warnings.simplefilter("ignore")
            if device is not None and torch.device(device).type == "meta":
                raise RuntimeError("it holds no numbers")
            return model.to(device)
    except (RuntimeError, AssertionError, ImportError) as error:
        # The first sentence: torch goes on with all that it has.
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from error


def _check_same_structure(part: str, given: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    check_type(f"{part} state", given, dict)
    if given.keys() != own.keys():
        raise ValueError(f"{part} state must have the tensors {sorted(own)}, got {sorted(given)}")
    for name, tensor in own.items():
        check_type(f"{part} state {name!r}", given[name], Tensor)
        if given[name].shape != tensor.shape or given[name].dtype != tensor.dtype:
            raise ValueError(
                f"{part} state {name!r} must have shape {tuple(tensor.shape)} and dtype {tensor.dtype}, "
                f"got {tuple(given[name].shape)} and {given[name].dtype}"
            )


def _check_steps(name: str, value: Tensor, step: int) -> None:
    """ValueError unless an optimizer's own count of steps is that of the trainer, as far as a float32 can count."""
    count, exact = value.item(), 1 << 24
    if count != step if step < exact else not exact <= count <= 2 * step:
        raise ValueError(f"optimizer state {name!r} must be {step}, the steps done, got {count}")


def next_chunk(steps: int, seconds: float) -> int:
    """The number of steps that takes about `_CHUNK_SECONDS`; grows tenfold at most, as the first steps are slow."""
    return max(1, min(10 * steps, int(steps * _CHUNK_SECONDS / max(seconds, 1e-9))))


def report_is_due(seconds: float) -> bool:
    """Whether the last report of progress was long enough ago."""
    return seconds >= _CHUNK_SECONDS
