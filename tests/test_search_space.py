"""What a sweep tries: lists and ranges, the grid, and random draws."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pytest

from charlm import search_space
from charlm.search_space import LogUniform, Uniform


def test_the_grid_has_every_value_with_every_other() -> None:
    space = search_space.checked({"hidden_dim": [10, 20], "learning_rate": [1, 0.1], "betas": [[0.9, 0.95], (0, 0.5)]})
    # In the order of the tables, in the types of a configuration.
    assert space == {"learning_rate": (1.0, 0.1), "betas": ((0.9, 0.95), (0.0, 0.5)), "hidden_dim": (10, 20)}
    assert search_space.size(space) == 8
    settings = [tuple(setting.values()) for setting in search_space.grid(space)]
    assert settings[:3] == [(1.0, (0.9, 0.95), 10), (1.0, (0.9, 0.95), 20), (1.0, (0.0, 0.5), 10)]
    assert len(set(settings)) == 8


def test_draws_are_in_their_ranges_and_spread_as_they_say() -> None:
    space = search_space.checked(
        {
            "learning_rate": LogUniform(0.001, 1.0),
            "momentum": Uniform(0.2, 0.6),
            "hidden_dim": Uniform(3, 6),
            "warmup_steps": LogUniform(1, 100),
            "optimizer": ["sgd", "adamw"],
        }
    )
    settings = search_space.draw(space, 4000, seed=3)
    assert len({tuple(setting.values()) for setting in settings}) == 4000
    logarithms = [math.log10(setting["learning_rate"]) for setting in settings]
    # A third in each decade; the standard deviation of such a share is 0.0075.
    for decade in (-3, -2, -1):
        share = sum(decade <= logarithm < decade + 1 for logarithm in logarithms) / 4000
        assert share == pytest.approx(1 / 3, abs=0.04)
    momenta = [setting["momentum"] for setting in settings]
    assert 0.2 <= min(momenta) < 0.21
    assert 0.59 < max(momenta) <= 0.6
    assert sum(momenta) / 4000 == pytest.approx(0.4, abs=0.01)
    counts = {size: sum(setting["hidden_dim"] == size for setting in settings) for size in (3, 4, 5, 6)}
    assert sum(counts.values()) == 4000
    assert all(count == pytest.approx(1000, abs=130) for count in counts.values())
    steps = [setting["warmup_steps"] for setting in settings]
    assert all(isinstance(step, int) for step in steps)
    assert (min(steps), max(steps)) == (1, 100)
    assert sum(step <= 10 for step in steps) / 4000 == pytest.approx(0.5, abs=0.05)
    # Three digits: a drawn setting can be typed.
    assert all(float(f"{setting['learning_rate']:.3g}") == setting["learning_rate"] for setting in settings)


def test_the_first_draws_do_not_depend_on_how_many_there_are() -> None:
    space = search_space.checked({"learning_rate": LogUniform(0.001, 1.0), "batch_size": [32, 64, "full"]})
    assert search_space.draw(space, 5, seed=1) == search_space.draw(space, 50, seed=1)[:5]
    assert search_space.draw(space, 5, seed=1) != search_space.draw(space, 5, seed=2)


def test_draws_of_lists_are_all_of_the_grid_in_the_end() -> None:
    space = search_space.checked({"hidden_dim": Uniform(4, 6), "optimizer": ["sgd", "adamw"]})
    settings = search_space.draw(space, 6, seed=0)
    assert {tuple(setting.values()) for setting in settings} == {(o, h) for o in ("sgd", "adamw") for h in (4, 5, 6)}
    with pytest.raises(ValueError, match=r"^trials must be at most 6, the number of settings, got 7$"):
        search_space.draw(space, 7, seed=0)


def test_settings_that_cannot_be_found_are_given_up() -> None:
    """Two floats that three digits do not tell apart."""
    space = search_space.checked({"learning_rate": Uniform(0.10001, 0.10002)})
    with pytest.raises(ValueError, match=r"^trials=4 different settings could not be drawn, only \d$"):
        search_space.draw(space, 4, seed=0)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"steps": [1, 2]}, "'steps' is not an option that a sweep tries values of: learning_rate, weight_decay, "),
        ({"learning_rate": []}, "learning_rate must have a value, got none"),
        ({"learning_rate": 0.1}, "learning_rate must be a list of values, Uniform or LogUniform, got 0.1"),
        ({"learning_rate": "0.1"}, "learning_rate must be a list of values, Uniform or LogUniform, got '0.1'"),
        ({"learning_rate": [0.1, 0]}, "learning_rate must be a positive number, got 0"),
        ({"learning_rate": [0.1, None]}, "learning_rate must be a positive number, got None"),
        ({"learning_rate": Uniform(0, 1)}, "learning_rate must be a positive number, got 0"),
        ({"learning_rate": [1, 0.5, 1.0]}, "learning_rate has the value 1 twice"),
        ({"batch_size": ["full", 1, "full"]}, "batch_size has the value full twice"),
        ({"betas": [(0.9, 0.99), (0.9, 0.99)]}, "betas has the value 0.9,0.99 twice"),
        ({"optimizer": ["adam"]}, "optimizer must be one of sgd, adamw, got 'adam'"),
        ({"optimizer": Uniform(0, 1)}, "optimizer takes words, which have no ranges"),
        ({"betas": Uniform(0, 1)}, "betas takes pairs, which have no ranges"),
        ({"hidden_dim": Uniform(10, 20.5)}, "hidden_dim must be a positive integer, got 20.5"),
    ],
    ids=str,
)
def test_what_cannot_be_tried_is_named(space: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        search_space.checked(space)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (1.0, 1.0, "a range must begin with the smaller number, got 1 and 1"),
        (2.0, 1.0, "a range must begin with the smaller number, got 2 and 1"),
        (0.0, math.inf, "a range must have two finite numbers, got inf"),
        (math.nan, 1.0, "a range must have two finite numbers, got nan"),
        (0, 10**400, "a range must have two finite numbers, got an integer of 1329 bits"),
        (True, 2, "a range must have two finite numbers, got True"),
        ("a", 2, "a range must have two finite numbers, got 'a'"),
    ],
)
def test_ranges_have_two_ends(low: Any, high: Any, message: str) -> None:
    for kind in (Uniform, LogUniform):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            kind(low, high)


def test_a_logarithmic_range_begins_above_zero() -> None:
    for low in (0, -1.0):
        with pytest.raises(ValueError, match=f"^a logarithmic range must begin above 0, got {low:g}$"):
            LogUniform(low, 1)


def test_a_range_has_no_grid() -> None:
    space = search_space.checked({"learning_rate": LogUniform(0.001, 0.3)})
    with pytest.raises(ValueError, match=r"^learning_rate has a range, log:0.001:0.3, which .*: give trials$"):
        list(search_space.grid(space))


def test_values_are_written_as_they_are_typed() -> None:
    space = search_space.checked(
        {"softcap": [None, 20], "betas": [(0.9, 0.95), (0.5, 0.9)], "momentum": Uniform(0, 0.5), "schedule": ["linear"]}
    )
    assert {name: search_space.described(values) for name, values in space.items()} == {
        **{"momentum": "uniform:0:0.5", "betas": "0.9,0.95/0.5,0.9", "schedule": "linear", "softcap": "none,20"}
    }


def test_which_axes_are_logarithmic() -> None:
    logarithmic = [
        *(("learning_rate", (0.1, 0.2)), ("weight_decay", LogUniform(1, 2)), ("weight_decay", (0.01, 0.1))),
        ("batch_size", (32, 320)),
    ]
    linear = [
        *(("weight_decay", (0.0, 0.1)), ("hidden_dim", (100, 200)), ("learning_rate", Uniform(0.1, 0.2))),
        *(("optimizer", ("sgd", "adamw")), ("batch_size", (1, "full")), ("softcap", (None, 3.0))),
    ]
    assert all(search_space.is_logarithmic(name, values) for name, values in logarithmic)
    assert not any(search_space.is_logarithmic(name, values) for name, values in linear)
