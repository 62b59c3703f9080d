"""Learning-rate schedules: their formulas, that the trainer follows them, and what is wrong with a bad one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
from trainers import make_mlp

from charlm import Trainer, data
from charlm.schedules import Schedule


@pytest.fixture
def dataset(tmp_path: Path) -> data.Dataset:
    return small_names.load(tmp_path)


def test_schedules_are_their_formulas() -> None:
    constant = Schedule("constant", 0.3)
    assert [constant(step) for step in (0, 5, 10**9)] == [0.3, 0.3, 0.3]

    halfway = Schedule("step", 0.1, total_steps=200_000)
    assert [halfway(step) for step in (0, 99_999, 100_000, 300_000)] == pytest.approx([0.1, 0.1, 0.01, 0.01], rel=1e-15)
    twice = Schedule("step", 8.0, milestones=[10, 20], decay_factor=0.5)
    assert [twice(step) for step in (9, 10, 19, 20)] == [8.0, 4.0, 4.0, 2.0]

    cosine = Schedule("cosine", 2.0, total_steps=110, warmup_steps=10)
    assert [cosine(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0], rel=1e-15)
    at_progress = [2.0, 1.0 + math.sqrt(0.5), 1.0, 0.0, 0.0]
    assert [cosine(step) for step in (10, 35, 60, 110, 500)] == pytest.approx(at_progress, abs=1e-15)

    linear = Schedule("linear", 2.0, total_steps=110, warmup_steps=10)
    assert [linear(step) for step in (4, 10, 35, 60, 110, 500)] == pytest.approx([1.0, 2.0, 1.5, 1.0, 0.0, 0.0])
    assert linear.range(35, 3).tolist() == [linear(35), linear(36), linear(37)]
    assert linear.range(35, 3).dtype == torch.float64


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule("constant", 0.3),
        Schedule("constant", 0.3, warmup_steps=6),
        Schedule("step", 0.3, total_steps=20),
        Schedule("step", 0.3, milestones=[0, 3, 4, 11], decay_factor=0.7, warmup_steps=2),
        Schedule("step", 0.3, milestones=[]),
        Schedule("cosine", 0.3, total_steps=21, warmup_steps=5),
        Schedule("linear", 0.3, total_steps=21, warmup_steps=5),
    ],
    ids=lambda schedule: f"{schedule.name} {schedule.warmup_steps} {schedule.milestones}",
)
def test_the_rates_of_many_steps_are_those_of_each(schedule: Schedule) -> None:
    """To the bit: where a run is cut into chunks must not change it. And each is its formula in plain numbers."""
    rate, warmup, total = 0.3, schedule.warmup_steps, schedule.total_steps or 1

    def formula(step: int) -> float:
        progress = min(1.0, (step - warmup) / (total - warmup))
        milestones = schedule.milestones if schedule.milestones is not None else [total // 2]
        if step < warmup:
            return rate * (step + 1) / warmup
        if schedule.name == "step":
            return rate * schedule.decay_factor ** sum(milestone <= step for milestone in milestones)
        if schedule.name == "cosine":
            return rate * (1.0 + math.cos(math.pi * progress)) / 2.0
        return rate * (1.0 - progress) if schedule.name == "linear" else rate

    expected = [formula(step) for step in range(30)]
    for start in range(30):
        assert schedule(start) == expected[start]
        for steps in (0, 1, 2, 9, 30 - start):
            assert schedule.range(start, steps).tolist() == [formula(step) for step in range(start, start + steps)]


def test_the_trainer_follows_the_schedule(dataset: data.Dataset) -> None:
    model = make_mlp(dataset)
    trainer = Trainer(
        model, dataset, learning_rate=0.4, schedule="linear", total_steps=10, warmup_steps=2, backend="eager"
    )
    schedule = Schedule("linear", 0.4, total_steps=10, warmup_steps=2)
    for step in range(10):
        before = model.bias2.detach().clone()
        trainer.run(1)
        assert model.bias2.grad is not None
        torch.testing.assert_close(model.bias2.detach(), before - schedule(step) * model.bias2.grad, rtol=0, atol=1e-16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "exponential"}, "schedule must be one of constant, step, cosine, linear, got 'exponential'"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a positive number, got nan"),
        ({"name": "cosine"}, "schedule 'cosine' needs total_steps"),
        ({"name": "linear"}, "schedule 'linear' needs total_steps"),
        ({"name": "step"}, "schedule 'step' needs milestones or total_steps"),
        ({"total_steps": 0}, "total_steps must be a positive integer or None, got 0"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer >= 0, got -1"),
        ({"total_steps": 5, "warmup_steps": 5}, "warmup_steps must be less than total_steps=5, got 5"),
        ({"name": "step", "milestones": [5, 3]}, r"milestones must be ascending steps or None, got \[5, 3\]"),
        ({"name": "step", "milestones": [5], "decay_factor": 0.0}, "decay_factor must be a positive number, got 0.0"),
    ],
)
def test_a_bad_schedule_is_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{"name": "constant", "learning_rate": 0.1, **options})
