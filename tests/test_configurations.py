"""Configurations of training: presets, JSON, and what is wrong with a bad one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from charlm import PRESETS, TrainingConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_survives_json(preset: str) -> None:
    config = PRESETS[preset]
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_are_the_published_models() -> None:
    sizes = {name: sum(p.numel() for p in config.create_model(27).parameters()) for name, config in PRESETS.items()}
    assert sizes == {
        "fast": 11_897,
        "best": 88_891,
        "makemore": 11_897,
        "eureka": 27 * 48 + 512 * 144 + 512 + 27 * 512 + 27,
        "bigram": 729,
        "count-bigram": 0,
    }


def test_every_preset_that_trains_makes_a_trainer() -> None:
    for name, config in PRESETS.items():
        dataset = config.load_data()
        model = config.create_model(len(dataset.vocabulary))
        if name != "count-bigram":
            trainer = config.create_trainer(model, dataset)
            first, last = trainer.run(2), trainer.evaluate("dev")
            assert first[0].item() == pytest.approx(math.log(len(dataset.vocabulary)), abs=0.1)
            assert math.isfinite(last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 0.1}, "unknown training options: learning_rat"),
        ({"learning_rate": "0.1"}, "learning_rate must be float, got '0.1'"),
        ({"batch_size": "some"}, "batch_size must be int or 'full', got 'some'"),
        ({"steps": True}, "steps must be int, got True"),
        ({"betas": [0.9]}, r"betas must be tuple\[float, float\], got \(0.9,\)"),
        ({"model": "rnn"}, "model must be 'count-bigram' or 'bigram' or 'mlp', got 'rnn'"),
        ({"softcap": "no"}, "softcap must be float or None, got 'no'"),
    ],
)
def test_a_bad_configuration_is_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_dict(options)
