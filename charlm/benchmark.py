"""Races between backends: the same training steps by each of them, side by side in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from charlm._rules import check
from charlm.backends import BACKENDS, EagerBackend
from charlm.configuration import TrainingConfig
from charlm.data import Dataset, Split
from charlm.presets import PRESETS

# Presets of training, and the first of them in large batches, and with all examples in every step.
WORKLOADS: dict[str, TrainingConfig] = {
    **{name: PRESETS[name] for name in ("makemore", "eureka")},
    "large": replace(PRESETS["makemore"], batch_size=4096),
    "full": replace(PRESETS["makemore"], batch_size="full"),
}
# Who else can be raced against, by name: given a configuration, its data and how many threads to use, they return
# `run(steps)`, which is as that of a `Trainer` with the same initial weights and batches. charlm itself has none.
OPPONENTS: dict[str, Callable[[TrainingConfig, Dataset, int], Callable[[int], Tensor]]] = {}

ROUNDS = 9
# Slow steps get fewer rounds, so that no backend takes more than about twice the time it was given.
_FEWEST_ROUNDS = 3
# Backends agree up to rounding; more than this apart, they do not do the same work.
_LOSS_TOLERANCE = 1e-3
_COMPARED_STEPS = 3
_PRODUCT_SIZE = 1024

Examples = Literal["batch", "every example", "distinct contexts"]


@dataclass(frozen=True)
class Timing:
    """What one contestant of a race took.

    Attributes:
        name: of the contestant: its backend, and " (distinct)" if that takes part in two ways.
        backend: in `charlm.backends.BACKENDS` or `OPPONENTS`.
        examples: what a step computes: those of a random batch, every training example, or each distinct context once
            with the counts of its targets, which gives the same gradient.
        steps: in each round.
        rounds: seconds per step, of every round.
    """

    name: str
    backend: str
    examples: Examples
    steps: int
    rounds: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)


@dataclass(frozen=True)
class Race:
    """A finished race.

    Attributes:
        workload: in `WORKLOADS`.
        config: its options.
        data: the name of the data set.
        vocab_size: V.
        parameters: of the model.
        batch: the examples of a step.
        flops: floating-point operations of a step in which every example is computed by itself.
        threads: of torch and of charlm.
        sgemm: the most float32 operations a second that a product of matrices reached between the rounds.
        timings: in the order of the backends.
    """

    workload: str
    config: TrainingConfig
    data: str
    vocab_size: int
    parameters: int
    batch: int
    flops: int
    threads: int
    sgemm: float
    timings: tuple[Timing, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON types, with the figures that follow from each median."""
        config = self.config
        eager = {timing.name: timing.seconds for timing in self.timings}.get("eager")
        return {
            "workload": {
                "name": self.workload,
                "data": self.data,
                "vocab_size": self.vocab_size,
                "context_length": config.context_length,
                "embedding_dim": config.embedding_dim,
                "hidden_dim": config.hidden_dim,
                "parameters": self.parameters,
                "optimizer": config.optimizer,
                "examples_per_step": self.batch,
                "flops_per_step": self.flops,
            },
            "threads": self.threads,
            "sgemm_gflops": self.sgemm / 1e9,
            "results": [
                {
                    "name": timing.name,
                    "backend": timing.backend,
                    "examples": timing.examples,
                    "steps_per_round": timing.steps,
                    "rounds_s": list(timing.rounds),
                    "median_s": timing.seconds,
                    "steps_per_second": 1.0 / timing.seconds,
                    "examples_per_second": self.batch / timing.seconds,
                    "ratio_to_eager": None if eager is None else eager / timing.seconds,
                    "gflops": self.flops / timing.seconds / 1e9,
                    "share_of_sgemm": self.flops / timing.seconds / self.sgemm,
                }
                for timing in self.timings
            ],
        }


def race(
    workload: str,
    *,
    path: str | None = None,
    backends: Sequence[str] | None = None,
    threads: int = 1,
    seconds: float = 5.0,
    on_round: Callable[[str], None] = lambda stage: None,
) -> Race:
    """Times training steps of each backend, in turn, in rounds of alternating order, after a warm-up.

    All of them start from the same weights and see the same batches; what is timed is `Trainer.run`. With the whole
    split as a batch, backends of autograd compute every example, as plain training code does; "eager (distinct)" is
    how `charlm.Trainer` has it done.

    Args:
        workload: in `WORKLOADS`.
        path: of the data; None is the embedded names.
        backends: in `charlm.backends.BACKENDS` or `OPPONENTS`; None is all of the former.
        threads: for torch and charlm while the race lasts.
        seconds: of measuring for each contestant; a slow one needs up to twice as much, or three steps.
        on_round: is told which stage begins.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: a backend computes another loss than the first one.
    """
    if workload not in WORKLOADS:
        raise ValueError(f"workload must be one of {', '.join(WORKLOADS)}, got {workload!r}")
    names = list(BACKENDS) if backends is None else list(backends)
    for name in names:
        if name not in (*BACKENDS, *OPPONENTS):
            raise ValueError(f"backends must be among {', '.join([*BACKENDS, *OPPONENTS])}, got {name!r}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"backends must be one or more different ones, got {', '.join(names) or 'none'}")
    check("threads", threads)
    check("seconds", seconds)

    config = replace(WORKLOADS[workload], path=path)
    dataset = config.load_data()
    with torch_threads(threads):
        contestants = [
            contestant
            for name in names
            for contestant in (
                [_opponent(name, config, dataset, threads)]
                if name in OPPONENTS
                else _contestants(name, replace(config, backend=name), dataset)
            )
        ]
        timings, sgemm = _time(contestants, seconds, on_round)
    vocab_size, batch = len(dataset.vocabulary), _batch(config, dataset)
    return Race(
        workload,
        config,
        dataset.name,
        vocab_size,
        sum(parameter.numel() for parameter in config.create_model(vocab_size).parameters()),
        batch,
        naive_flops(config, vocab_size, batch),
        threads,
        sgemm,
        timings,
    )


def naive_flops(config: TrainingConfig, vocab_size: int, examples: int) -> int:
    """The floating-point operations in the matrix products of one step of an MLP: forward, and twice that backward."""
    inputs = config.context_length * config.embedding_dim
    products = inputs * config.hidden_dim + config.hidden_dim * vocab_size + config.direct * inputs * vocab_size
    return 6 * products * examples


def product_rate(dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of one product of 1024 x 1024 matrices, with torch's number of threads."""
    a, b = torch.rand(2, _PRODUCT_SIZE, _PRODUCT_SIZE, dtype=dtype)
    return 2 * _PRODUCT_SIZE**3 / elapsed_seconds(torch.mm, a, b)


@dataclass(frozen=True)
class _Contestant:
    """Takes training steps: `run(steps)` returns their losses."""

    name: str
    backend: str
    examples: Examples
    run: Callable[[int], Tensor]


def _contestants(name: str, config: TrainingConfig, dataset: Dataset) -> Iterator[_Contestant]:
    """The ways in which a backend, that of `config`, takes part."""
    trainer = config.create_trainer(config.create_model(len(dataset.vocabulary)), dataset)
    if config.batch_size != "full":
        yield _Contestant(name, name, "batch", trainer.run)
    elif issubclass(BACKENDS[name], EagerBackend):
        yield _Contestant(name, name, "every example", _run_on_every_example(name, config, dataset))
        if name == "eager":
            yield _Contestant("eager (distinct)", name, "distinct contexts", trainer.run)
    else:
        yield _Contestant(name, name, "distinct contexts", trainer.run)


def _opponent(name: str, config: TrainingConfig, dataset: Dataset, threads: int) -> _Contestant:
    examples: Examples = "every example" if config.batch_size == "full" else "batch"
    return _Contestant(name, name, examples, OPPONENTS[name](config, dataset, threads))


class _AllExamples(Split):
    """A split of which every batch is all of it, cut into examples beforehand."""

    def __init__(self, split: Split) -> None:
        super().__init__(split.tokens, split.ends, split.context_length, split.vocab_size)
        self._examples = split.contexts, split.targets

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._examples


def _run_on_every_example(name: str, config: TrainingConfig, dataset: Dataset) -> Callable[[int], Tensor]:
    # The trainer is only asked for the optimizer.
    model = config.create_model(len(dataset.vocabulary))
    optimizer = config.create_trainer(model, dataset).optimizer
    backend = BACKENDS[name](model, optimizer, _AllExamples(dataset.train), config)
    indices, rate = torch.arange(len(dataset.train))[None], torch.tensor([config.learning_rate])

    def run(steps: int) -> Tensor:
        return torch.cat([backend.run(indices, rate) for _ in range(steps)])

    return run


def _batch(config: TrainingConfig, dataset: Dataset) -> int:
    return config.batch_size if isinstance(config.batch_size, int) else len(dataset.train)


def _time(
    contestants: Sequence[_Contestant], seconds: float, on_round: Callable[[str], None]
) -> tuple[tuple[Timing, ...], float]:
    """The timings, and the best speed of a product of matrices in between."""
    losses, steps, slowest = [], [], 0.0
    for contestant in contestants:
        on_round(f"warming up {contestant.name}")
        losses.append(contestant.run(_COMPARED_STEPS))
        if not torch.allclose(losses[-1], losses[0], rtol=_LOSS_TOLERANCE, atol=0.0):
            raise RuntimeError(
                f"{contestant.name} has the losses {losses[-1].tolist()} in its first steps, "
                f"{contestants[0].name} {losses[0].tolist()}"
            )
        count, step_seconds = warm_up(contestant.run, seconds / ROUNDS)
        steps.append(count)
        slowest = max(slowest, step_seconds)
    rounds = max(_FEWEST_ROUNDS, min(ROUNDS, int(2 * seconds / slowest)))
    times: list[list[float]] = [[] for _ in contestants]
    sgemm = product_rate()
    for number in range(rounds):
        on_round(f"round {number + 1} of {rounds}")
        order = range(len(contestants)) if number % 2 == 0 else reversed(range(len(contestants)))
        for i in order:
            times[i].append(elapsed_seconds(contestants[i].run, steps[i]) / steps[i])
        sgemm = max(sgemm, product_rate())
    timings = tuple(
        Timing(contestant.name, contestant.backend, contestant.examples, count, tuple(measured))
        for contestant, count, measured in zip(contestants, steps, times, strict=True)
    )
    return timings, sgemm


def warm_up(run: Callable[[int], object], seconds: float) -> tuple[int, float]:
    """Returns how many steps take `seconds`, and what one step takes, after a run of as many.

    Every number of steps is run twice and timed once: it may have to be compiled first.
    """
    steps = 1
    while True:
        run(steps)
        elapsed = elapsed_seconds(run, steps)
        if elapsed >= seconds / 10:
            count = max(1, round(steps * seconds / elapsed))
            if count > steps:
                run(count)
            return count, elapsed / steps
        steps *= 4


def elapsed_seconds(function: Callable[..., object], *arguments: object) -> float:
    """What one call takes."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch and charlm use so many threads within."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
