"""Learning-rate schedules: the rate is a pure function of the step, so stopping and resuming cannot change it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from charlm._rules import check


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step, counted from 0.

    With base rate r, w warm-up steps and n total steps, step s < w has the rate r (s + 1) / w; from then on

        constant   r
        step       r * decay_factor^(number of milestones <= s)
        cosine     r (1 + cos(pi p)) / 2,  p = (s - w) / (n - w)
        linear     r (1 - p)

    where p stays at 1, and the rate at 0, after the last step.

    Args:
        name: "constant", "step", "cosine" or "linear".
        learning_rate: r > 0.
        total_steps: n; "cosine" and "linear" need it.
        warmup_steps: w >= 0, less than n if n is given.
        milestones: ascending steps at which "step" decays; None is once, after half of `total_steps`.
        decay_factor: what "step" multiplies the rate by at a milestone.

    Source: cosine: Loshchilov and Hutter 2017, "SGDR", arXiv:1608.03983; warm-up: Goyal et al. 2017, arXiv:1706.02677.
    """

    name: str
    learning_rate: float
    total_steps: int | None = None
    warmup_steps: int = 0
    milestones: Sequence[int] | None = None
    decay_factor: float = 0.1

    def __post_init__(self) -> None:
        check("schedule", self.name)
        for option in ("learning_rate", "decay_factor", "warmup_steps"):
            check(option, getattr(self, option))
        for option in ("total_steps", "milestones"):
            check(option, getattr(self, option), optional=True)
        if self.total_steps is not None and self.warmup_steps >= self.total_steps:
            raise ValueError(f"warmup_steps must be less than total_steps={self.total_steps}, got {self.warmup_steps}")
        if self.name in ("cosine", "linear") and self.total_steps is None:
            raise ValueError(f"schedule {self.name!r} needs total_steps")
        if self.name == "step" and self.milestones is None and self.total_steps is None:
            raise ValueError("schedule 'step' needs milestones or total_steps")
        if self.name == "step" and not math.isfinite(self._last_rate()):
            raise ValueError(
                f"decay_factor={self.decay_factor:g} makes the learning rate infinite after "
                f"{len(self._milestones())} milestones"
            )

    def __call__(self, step: int) -> float:
        """The learning rate of `step`."""
        return self.range(step, 1).item()

    def range(self, start: int, steps: int) -> Tensor:
        """The learning rates (steps,) in float64 of the steps from `start` on."""
        rate, end = float(self.learning_rate), start + steps
        if self.name in ("constant", "step"):
            rates = torch.full((steps,), rate, dtype=torch.float64, device="cpu")
            milestones = self._milestones() if self.name == "step" else ()
            for passed in range(max(1, bisect_right(milestones, start)), bisect_left(milestones, end) + 1):
                rates[max(0, milestones[passed - 1] - start) :] = rate * self.decay_factor**passed
        else:
            progress = self._progress(torch.arange(start, end, device="cpu"))
            # Cosines of math: how torch's are rounded depends on the machine.
            rates = rate * (
                (1.0 + _numbers(map(math.cos, (math.pi * progress).tolist()))) / 2.0
                if self.name == "cosine"
                else 1.0 - progress
            )
        if start < self.warmup_steps:
            step = torch.arange(start, end, device="cpu")
            rates = torch.where(step < self.warmup_steps, rate * (step.double() + 1) / self.warmup_steps, rates)
        return rates

    def _last_rate(self) -> float:
        """The rate of "step" after all milestones."""
        try:
            return float(self.learning_rate * self.decay_factor ** len(self._milestones()))
        except OverflowError:
            return math.inf

    def _milestones(self) -> Sequence[int]:
        if self.milestones is not None:
            return self.milestones
        assert self.total_steps is not None
        return (self.total_steps // 2,)

    def _progress(self, step: Tensor) -> Tensor:
        assert self.total_steps is not None
        return ((step - self.warmup_steps).double() / (self.total_steps - self.warmup_steps)).clamp(max=1.0)


def _numbers(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64, device="cpu")
