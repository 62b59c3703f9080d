"""Many trainers that make their steps together: those of one shape in one call of the engine, a model a thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from charlm._rules import check, check_type
from charlm.backends import run_together
from charlm.configuration import TrainingConfig
from charlm.data import Dataset
from charlm.distributed import current
from charlm.interrupts import deferred_interrupt
from charlm.token_arrays import OnRead
from charlm.trainer import NonFiniteLossError, Trainer, next_chunk, report_is_due

# So many models are trained in chunks of the length that one has, and more in longer ones: what Python does for a model
# in every chunk takes as long as ten steps of a small one.
_MODELS_A_CHUNK = 200


class Population:
    """Trains many models at once, each to the bits that its own trainer by itself would give it.

    The backend "fused" makes the steps of all models that have one shape, split, batch size and kind of optimizer in
    one call; all else, such as seeds, learning rates, schedules, weight decays and softcaps, is each model's own.
    Trainers with other backends, shapes or data may be among them: their steps come after one another.

        population = charlm.Population.from_configs(
            [replace(charlm.PRESETS["fast"], learning_rate=rate) for rate in (0.03, 0.1, 0.3)]
        )
        losses = population.run(2_000)
        best = population.trainers[int(population.evaluate("dev").nan_to_num(math.inf).argmin())]

    Args:
        trainers: M of them, each once. They stay what they are, and may be at different steps.

    Attributes:
        trainers: in their order.
        errors: of each trainer, the `NonFiniteLossError` that ended it, or None. It makes no more steps, and keeps
            none of the others from theirs.
        losses: what the last call of `run` has returned, or would have returned where something ended it early.

    Raises:
        TypeError: something else than a trainer is among them.
        ValueError: there is none, two are one or train the same model, or this process belongs to a process group.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        check_type("trainers", trainers, Sequence)
        self.trainers = tuple(trainers)
        _check_different(self.trainers)
        if (processes := current().size) > 1:
            raise ValueError(
                f"a Population trains in one process, but there are {processes} in a process group: let Trainer share "
                "each model among them, or start a process for each part of the models without a process group"
            )
        self.errors: list[NonFiniteLossError | None] = [None] * len(self.trainers)
        self._chunk_steps = 1
        self.losses = self._no_losses(0)

    @classmethod
    def from_configs(cls, configs: Sequence[TrainingConfig], on_read: OnRead | None = None) -> Population:
        """A trainer for each configuration, as `create_trainer` of it makes it; data that several have is read once.

        Args:
            configs: at least one.
            on_read: as in `charlm.data.load`.

        Raises:
            TypeError: something else than a configuration is among them.
            ValueError: there is none, one is of a model that is not trained in steps, or whatever is wrong with it.
        """
        check_type("configs", configs, Sequence)
        for number, config in enumerate(configs):
            check_type(f"configs[{number}]", config, TrainingConfig)
            if config.model == "count-bigram":
                raise ValueError(f"configs[{number}] has model='count-bigram', which is not trained in steps")
        if not configs:
            raise ValueError("configs must be at least one TrainingConfig, got none")
        datasets: dict[Hashable, Dataset] = {}
        trainers = []
        for config in configs:
            text = config.data_options()
            if text not in datasets:
                datasets[text] = config.load_data(on_read=on_read)
            dataset = datasets[text]
            trainers.append(config.create_trainer(config.create_model(len(dataset.vocabulary)), dataset))
        return cls(trainers)

    def __len__(self) -> int:
        """M."""
        return len(self.trainers)

    def run(self, steps: int, on_progress: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """Trains every model `steps` more steps, but for those in `errors`.

        Args:
            steps: at least 0. One call or many: the result is the same bit for bit.
            on_progress: called as `on_progress(steps, losses)` with the number of steps that this call has made of each
                model, and their losses (M,) at the last of them, a few times per second at most, and after the last.

        Returns:
            The loss of every step's batch before its update: (M, steps) on the CPU, in the widest dtype of the models;
            NaN after the first that is not finite.

        Raises:
            KeyboardInterrupt: Ctrl-C, raised when all models have made the same number of steps.
            ValueError, RuntimeError: a model has an option that its dtype cannot hold, or does not fit into memory. The
                others have made a chunk of steps more.
        """
        check("steps", steps)
        chunks = [self._no_losses(0)]
        done, reported = 0, time.monotonic()
        with deferred_interrupt() as interrupt:
            try:
                while done < steps and None in self.errors:
                    started = time.monotonic()
                    self._run_chunk(min(self._chunk_steps, steps - done), chunks)
                    made, now = chunks[-1].shape[1], time.monotonic()
                    done += made
                    self._chunk_steps = next_chunk(made, (now - started) / max(1.0, len(self) / _MODELS_A_CHUNK))
                    if on_progress is not None and (done == steps or report_is_due(now - reported)):
                        on_progress(done, chunks[-1][:, -1])
                        reported = now
                    if interrupt.pending:
                        interrupt.deliver(interrupt.pending)
            finally:
                self.losses = torch.cat(chunks, dim=1)
                for trainer, losses in zip(self.trainers, self.losses, strict=True):
                    dtype = next(trainer.model.parameters()).dtype
                    trainer.losses = losses[: _finite(losses)].to(dtype)
        # Where all have ended early.
        self.losses = torch.cat([self.losses, self._no_losses(steps - done)], dim=1)
        return self.losses

    def evaluate(self, split: str) -> Tensor:
        """The mean negative log-likelihood, in nats, of "train", "dev" or "test" by each model, as `Trainer.evaluate`.

        Returns:
            (M,) in float64; NaN for those in `errors`.
        """
        losses = [
            trainer.evaluate(split) if error is None else math.nan
            for trainer, error in zip(self.trainers, self.errors, strict=True)
        ]
        return torch.tensor(losses, dtype=torch.float64, device="cpu")

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that training changes: the state of each of `trainers`, and the messages of `errors`."""
        return {
            "trainers": [trainer.state_dict() for trainer in self.trainers],
            "errors": [None if error is None else str(error) for error in self.errors],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken, bit for bit if the trainers were made with the same arguments.

        Raises:
            ValueError: it is not the state of as many trainers, or not that of one of them; nothing was changed.
        """
        check_type("state", state, dict)
        if state.keys() != {"trainers", "errors"}:
            raise ValueError(f"state must have the keys ['errors', 'trainers'], got {sorted(map(str, state))}")
        for name, kinds in (("trainers", (dict,)), ("errors", (str, type(None)))):
            check_type(f"state {name!r}", state[name], list, tuple)
            if len(state[name]) != len(self):
                raise ValueError(f"state {name!r} must be those of {len(self)} trainers, got {len(state[name])}")
            for number, value in enumerate(state[name]):
                check_type(f"state {name!r}[{number}]", value, *kinds)
        before = [trainer.state_dict() for trainer in self.trainers]
        for number, (trainer, own) in enumerate(zip(self.trainers, state["trainers"], strict=True)):
            try:
                trainer.load_state_dict(own)
            except (TypeError, ValueError) as error:
                for earlier, kept in zip(self.trainers[:number], before[:number], strict=True):
                    earlier.load_state_dict(kept)
                raise type(error)(f"trainers[{number}]: {error}") from error
        self.errors = [None if message is None else NonFiniteLossError(message) for message in state["errors"]]

    def _run_chunk(self, steps: int, chunks: list[Tensor]) -> None:
        """At most `steps` steps of all models that go on; their losses (M, S) are appended to `chunks`."""
        live = [number for number, error in enumerate(self.errors) if error is None]
        trainers = [self.trainers[number] for number in live]
        steps = min(steps, *(trainer._most_steps() for trainer in trainers))
        batches, rates = zip(*(trainer._next_steps(steps) for trainer in trainers), strict=True)
        outcomes = run_together([trainer._backend for trainer in trainers], batches, rates)
        chunks.append(self._no_losses(steps))
        refused: Exception | None = None
        for number, outcome in zip(live, outcomes, strict=True):
            try:
                chunks[-1][number] = self.trainers[number]._made(outcome)
            except NonFiniteLossError as error:
                self.errors[number] = error
                if isinstance(outcome, Tensor):
                    # What comes after the first that is not finite depends on how long the chunk was.
                    made = _finite(outcome) + 1
                    chunks[-1][number, :made] = outcome[:made]
            except Exception as error:
                refused = refused or error
        if refused is not None:
            raise refused

    def _no_losses(self, steps: int) -> Tensor:
        """(M, steps) of NaN."""
        dtypes = (next(trainer.model.parameters()).dtype for trainer in self.trainers)
        return torch.full((len(self), steps), math.nan, dtype=reduce(torch.promote_types, dtypes), device="cpu")


def _finite(losses: Tensor) -> int:
    """How many losses there are before the first that is not finite."""
    return int(losses.isfinite().cumprod(0).sum())


def _check_different(trainers: Sequence[Trainer]) -> None:
    """ValueError unless there is a trainer, and none is there twice or trains what another one trains."""
    if not trainers:
        raise ValueError("trainers must be at least one Trainer, got none")
    owners: dict[Hashable, int] = {}
    for number, trainer in enumerate(trainers):
        check_type(f"trainers[{number}]", trainer, Trainer)
        parameters = ((parameter.device, parameter.data_ptr()) for parameter in trainer.model.parameters())
        for what, thing in (("is", id(trainer)), *(("trains the model of", place) for place in parameters)):
            if (other := owners.setdefault(thing, number)) != number:
                raise ValueError(f"trainers[{number}] {what} trainers[{other}]: each must train a model of its own")
