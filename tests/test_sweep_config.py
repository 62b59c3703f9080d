"""What a sweep is: its settings and models, when hopeless ones are stopped, and what came of a setting."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest

from charlm import TrainingConfig
from charlm.search_space import LogUniform, Uniform
from charlm.sweep import SettingResult, SweepConfig, SweepResult
from charlm.sweep.halving import best, rungs
from charlm.sweep.results import by_setting, order

BASE = TrainingConfig(steps=90, batch_size=8)


def test_a_model_for_each_setting_and_seed() -> None:
    config = SweepConfig(
        base=replace(BASE, seed=7), options={"learning_rate": [0.1, 0.2], "hidden_dim": [5, 9]}, seeds=2
    )
    expected = [(rate, size, seed) for rate in (0.1, 0.2) for size in (5, 9) for seed in (7, 8)]
    assert [(c.learning_rate, c.hidden_dim, c.seed) for c in config.configs] == expected
    assert config.configs[5] == replace(BASE, learning_rate=0.2, hidden_dim=5, seed=8)


def test_seeds_alone_are_a_sweep() -> None:
    config = SweepConfig(base=BASE, options={}, seeds=3)
    assert (config.settings, [c.seed for c in config.configs]) == (({},), [42, 43, 44])


@pytest.mark.parametrize(
    "options",
    [
        {"options": {"learning_rate": LogUniform(0.01, 1), "batch_size": ["full", 8]}, "trials": 5, "draw_seed": -3},
        {"options": {"hidden_dim": Uniform(3, 9), "softcap": [None, 5.0]}, "trials": 4, "seeds": 2, "halving": 2},
        {"options": {"optimizer": ["adamw"], "betas": [(0.9, 0.99), (0.8, 0.9)]}},
    ],
    ids=str,
)
def test_it_comes_back_from_json(options: dict[str, Any]) -> None:
    config = SweepConfig(base=BASE, **options)
    again = SweepConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.configs == config.configs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": {}}, "there is nothing to try: give several values of an option, or seeds"),
        ({"options": {}, "trials": 3, "seeds": 2}, "trials must be None where no option has several values"),
        ({"options": {"momentum": [0, 0.9]}, "trials": 3}, "trials must be at most 2, the number of settings, got 3"),
        ({"options": {"momentum": Uniform(0, 0.9)}}, "momentum has a range, uniform:0:0.9, which has no end of values"),
        ({"options": {"momentum": [0, 0.9]}, "halving": 1}, "halving must be an integer >= 2 or None, got 1"),
        ({"options": {"momentum": [0, 0.9]}, "seeds": 0}, "seeds must be a positive integer, got 0"),
        (
            {"options": {"momentum": [0, 0.9], "optimizer": ["sgd", "adamw"]}},
            "momentum is an option of sgd; adamw has betas, got momentum=0.9 (momentum=0.9, optimizer=adamw)",
        ),
        (
            {"options": {"warmup_steps": [0, 90]}},
            "warmup_steps must be less than total_steps=90, got 90 (warmup_steps=90)",
        ),
        (
            {"options": {"hidden_dim": list(range(1, 1002))}, "seeds": 100},
            "a sweep has at most 100,000 models, got 100,100: draw trials",
        ),
    ],
    ids=str,
)
def test_what_is_no_sweep_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        SweepConfig(base=BASE, **options)


def test_a_model_that_is_counted_is_not_swept() -> None:
    with pytest.raises(ValueError, match=r"^model must be one that is trained in steps, got 'count-bigram'$"):
        SweepConfig(base=TrainingConfig(model="count-bigram"), options={}, seeds=2)


def test_the_largest_seed_has_no_next() -> None:
    with pytest.raises(ValueError, match=r"^seed must be an integer <= 18446744073709551615, got 18446744073709551616"):
        SweepConfig(base=replace(BASE, seed=2**64 - 1), options={}, seeds=2)


# Successive halving


@pytest.mark.parametrize(
    ("models", "steps", "eta", "after", "expected"),
    [
        # Of 27 models 9, 3 and 1 go on after a 27th, a 9th and a third of the steps.
        (27, 270, 3, 0, [(10, 9), (30, 3), (90, 1)]),
        (30, 270, 3, 0, [(10, 10), (30, 3), (90, 1)]),
        (8, 100, 2, 0, [(13, 4), (25, 2), (50, 1)]),
        # After the warm-up only: the first rung that is left keeps a third of all.
        (27, 270, 3, 30, [(90, 9)]),
        # As many rungs as leave a model, and one step is not cut.
        (2, 100, 3, 0, []),
        (1000, 4, 2, 0, [(1, 500), (2, 250)]),
        (5, 1, 2, 0, []),
        (4, 200, 1000, 0, []),
    ],
)
def test_rungs(models: int, steps: int, eta: int, after: int, expected: list[tuple[int, int]]) -> None:
    assert list(rungs(models, steps, eta, after=after)) == expected


def test_the_best_go_on() -> None:
    losses = {3: 2.0, 1: 1.5, 7: math.nan, 2: 1.5, 9: math.inf, 4: 3.0}
    assert best(losses, 1) == {1}
    assert best(losses, 3) == {1, 2, 3}
    # Those that have no loss never do.
    assert best(losses, 6) == {1, 2, 3, 4}


def test_rungs_wait_for_the_longest_warm_up() -> None:
    config = SweepConfig(base=BASE, options={"warmup_steps": [0, 12, 30]}, seeds=3, halving=3)
    assert config.rungs == ()
    assert replace(config, options={"warmup_steps": [0, 12]}, seeds=5).rungs == ((30, 3),)


# Results


def result(model: int, dev: float | None, status: Any = "done", step: int = 90, **options: Any) -> SweepResult:
    return SweepResult(model, options, model, step, None if dev is None else dev + 0.5, dev, status)


def test_results_are_sorted_by_how_far_they_came_then_by_dev() -> None:
    results = [
        result(0, None, "diverged", 3),
        result(1, 1.0, "stopped", 30),
        result(2, 2.5),
        result(3, 2.4),
        result(4, 0.5, "stopped", 10),
        result(5, None, "diverged", 8),
        result(6, 2.4),
    ]
    assert [found.model for found in sorted(results, key=order)] == [3, 6, 2, 1, 4, 5, 0]


def test_a_setting_is_the_mean_of_its_models_that_came_as_far() -> None:
    setting = SettingResult.of(
        [result(0, 2.0), result(1, None, "diverged", 5), result(2, 2.2), result(3, 1.0, "stopped", 9)]
    )
    assert [found.model for found in setting.results] == [0, 2, 3, 1]
    assert setting.dev == pytest.approx(2.1)
    assert setting.loss == pytest.approx(2.6)
    # The deviation of two numbers 0.2 apart.
    assert setting.spread == pytest.approx(0.2 / math.sqrt(2))
    alone = SettingResult.of([result(0, 2.0)])
    assert (alone.dev, alone.spread) == (2.0, None)
    lost = SettingResult.of([result(0, None, "diverged", 5)])
    assert (lost.dev, lost.loss, lost.spread) == (None, None, None)


def test_settings_are_sorted_by_their_mean() -> None:
    results = [
        *(result(0, None, "diverged", 5), result(1, None, "diverged", 9)),
        *(result(2, 2.0), result(3, 2.4)),
        *(result(4, 1.9), result(5, 2.6)),
        *(result(6, 1.0, "stopped", 30), result(7, 1.0, "stopped", 30)),
        *(result(8, 2.1), result(9, None, "diverged", 7)),
    ]
    assert [setting.results[0].model for setting in by_setting(results, 2)] == [8, 2, 4, 6, 1]
