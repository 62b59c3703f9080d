"""What came of the models of a sweep: each by itself, and the models of one setting together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Status = Literal["training", "done", "stopped", "diverged"]
STATUSES: tuple[Status, ...] = get_args(Status)
# How far they came: those that were trained to the end are better than all others.
_RANK = {"done": 0, "training": 1, "stopped": 2, "diverged": 3}


@dataclass(frozen=True)
class SweepResult:
    """One model of a sweep.

    Attributes:
        model: its number, from 0 on.
        options: the values that it has of the options that are swept.
        seed: of its initial weights and batches.
        step: the steps that it was trained for; of one that diverged, those with a finite loss.
        loss: of the batches of train, the mean over the steps since the record before, in nats; None before the first.
        dev: the loss of dev at its last step; None before the first measurement, and where it diverged.
        status: "training", "done", "stopped" by halving, or "diverged": a loss was infinite or NaN.
    """

    model: int
    options: Mapping[str, Any]
    seed: int
    step: int
    loss: float | None
    dev: float | None
    status: Status

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class SettingResult:
    """The models of one setting, which differ in their seeds.

    Attributes:
        options: the setting.
        results: its models, the best one first.
        dev: the mean loss of dev of those that came as far as the best one; None where none has one.
        loss: likewise of train.
        spread: the standard deviation of dev over these (n - 1 in the denominator); None of a single one.
    """

    options: Mapping[str, Any]
    results: tuple[SweepResult, ...]
    dev: float | None
    loss: float | None
    spread: float | None

    @classmethod
    def of(cls, results: Iterable[SweepResult]) -> SettingResult:
        """Of all models of a setting, at least one."""
        ordered = tuple(sorted(results, key=order))
        best = ordered[0]
        level = [result for result in ordered if (result.status, result.step) == (best.status, best.step)]
        dev = [result.dev for result in level if result.dev is not None]
        loss = [result.loss for result in level if result.loss is not None]
        return cls(
            best.options,
            ordered,
            statistics.fmean(dev) if dev else None,
            statistics.fmean(loss) if loss else None,
            statistics.stdev(dev) if len(dev) > 1 else None,
        )


def order(result: SweepResult) -> tuple[float, ...]:
    """What results are sorted by: how far they came, then dev, then their number."""
    return (*_level(result), math.inf if result.dev is None else result.dev, result.model)


def by_setting(results: Sequence[SweepResult], seeds: int) -> list[SettingResult]:
    """The settings, the best first: those of which a model was trained to its end by the mean of dev.

    Args:
        results: of all models, by number.
        seeds: how many models of a setting follow each other.
    """
    settings = [SettingResult.of(results[start : start + seeds]) for start in range(0, len(results), seeds)]
    return sorted(
        settings,
        key=lambda setting: (
            *_level(setting.results[0]),
            math.inf if setting.dev is None else setting.dev,
            setting.results[0].model,
        ),
    )


def _level(result: SweepResult) -> tuple[float, float]:
    return _RANK[result.status], -result.step
