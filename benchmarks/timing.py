"""How steps are timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from charlm.benchmark import elapsed_seconds, warm_up

# Does so many steps.
Run = Callable[[int], object]

# Such steps, as those of float16 where the processor has no instructions for it, would take all day.
_SLOW_SECONDS, _ROUNDS_OF_SLOW = 10.0, 3


def forward_and_backward(
    function: Callable[..., Tensor], arguments: Sequence[Any], upstream: Tensor | None = None
) -> Callable[[], object]:
    """A step: the call, and the gradients of the arguments that require one, which accumulate on nothing.

    `upstream` is the gradient of the result, where that is no scalar.
    """
    leaves = [argument for argument in arguments if isinstance(argument, Tensor) and argument.requires_grad]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        function(*arguments).backward(upstream)

    return step


def forward_alone(function: Callable[..., object], arguments: Sequence[Any]) -> Callable[[], object]:
    """A step: the call, of which no gradient is wanted."""

    def step() -> None:
        with torch.no_grad():
            function(*arguments)

    return step


def repeated(step: Callable[[], object]) -> Run:
    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return run


def alternate(runs: Mapping[str, Run], rounds: int, seconds: float) -> dict[str, list[float]]:
    """The seconds a step of each contestant takes, round by round, after a warm-up.

    In a round each of them does as many steps as take about `seconds`, at least one; every other round is in reverse
    order. Where a step takes ten seconds, there are three rounds at most.
    """
    counts, slowest = {}, 0.0
    for name, run in runs.items():
        counts[name], step_seconds = warm_up(run, seconds)
        slowest = max(slowest, step_seconds)
    if slowest > _SLOW_SECONDS:
        rounds = min(rounds, _ROUNDS_OF_SLOW)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in runs if number % 2 == 0 else reversed(list(runs)):
            times[name].append(elapsed_seconds(runs[name], counts[name]) / counts[name])
    return times


def ratio(other: Sequence[float], own: Sequence[float]) -> float:
    """How many times as long the other takes: the median, over the rounds, of the ratio in each of them.

    What slows the machine down for a while slows down all of a round, and not its ratio.
    """
    return median(theirs / ours for theirs, ours in zip(other, own, strict=True))


def threads_shown(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"
