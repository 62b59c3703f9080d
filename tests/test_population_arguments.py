"""What a population is made of: trainers of different models, or configurations that share what they read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
from test_hostile_arguments import HOSTILE
from trainers import make_mlp, make_trainer

from charlm import Population, Trainer, TrainingConfig, data
from charlm.distributed import Processes

pytestmark = pytest.mark.cpu

FUSED: dict[str, Any] = {"backend": "fused", "device": "cpu"}


@pytest.fixture
def dataset(tmp_path: Path) -> data.Dataset:
    return small_names.load(tmp_path)


def test_trainers_must_be_some_and_different(dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (make_trainer(dataset, **FUSED) for _ in range(2))
    for value in HOSTILE:
        with pytest.raises((TypeError, ValueError), match="trainers"):
            Population(value)
        with pytest.raises(TypeError, match=r"trainers\[1\] must be Trainer, got"):
            Population([one, value])
    with pytest.raises(ValueError, match=r"^trainers must be at least one Trainer, got none$"):
        Population([])
    with pytest.raises(ValueError, match=r"^trainers\[2\] is trainers\[0\]: each must train a model of its own$"):
        Population([one, two, one])
    same = Trainer(one.model, dataset, learning_rate=0.1)
    tied = make_mlp(dataset)
    tied.embedding = two.model.embedding
    for other, shared in ((same, 0), (Trainer(tied, dataset, learning_rate=0.1), 1)):
        with pytest.raises(ValueError, match=rf"^trainers\[2\] trains the model of trainers\[{shared}\]: each"):
            Population([one, two, other])
    monkeypatch.setattr("charlm.population.current", lambda: Processes(0, 2))
    with pytest.raises(ValueError, match=r"^a Population trains in one process, but there are 2 in a process group"):
        Population([one, two])


def test_methods_name_what_they_refuse(dataset: data.Dataset) -> None:
    population = Population([make_trainer(dataset, **FUSED)])
    for name, method in (
        ("steps", population.run),
        ("split", population.evaluate),
        ("state", population.load_state_dict),
    ):
        for value in HOSTILE:
            with pytest.raises((TypeError, ValueError), match=name):
                method(value)
    assert len(population) == 1


def test_configurations_share_what_they_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_names.load(tmp_path)
    config = TrainingConfig(
        path=str(tmp_path / "small_names.txt"), embedding_dim=2, hidden_dim=4, steps=20, batch_size=8, backend="fused"
    )
    configs = [
        config,
        replace(config, learning_rate=0.2, seed=3, weight_decay=0.1, schedule="linear"),
        replace(config, hidden_dim=6),
        replace(config, context_length=2),
        replace(config, model="bigram", context_length=2, softcap=None),
        replace(config, model="bigram"),
        replace(config, split_seed=7),
    ]
    loads: list[TrainingConfig] = []
    load = TrainingConfig.load_data

    def counted(self: TrainingConfig, *arguments: Any, **more: Any) -> data.Dataset:
        loads.append(self)
        return load(self, *arguments, **more)

    monkeypatch.setattr(TrainingConfig, "load_data", counted)
    population = Population.from_configs(configs)
    assert loads == [configs[0], configs[3], configs[4], configs[6]]
    assert population.trainers[0].dataset is population.trainers[2].dataset
    assert population.trainers[4].dataset is population.trainers[5].dataset
    losses = population.run(20)
    for own, single_config in zip(losses, configs, strict=True):
        dataset = single_config.load_data()
        single = single_config.create_trainer(single_config.create_model(len(dataset.vocabulary)), dataset)
        assert torch.equal(own, single.run(20))


def test_configurations_must_be_some_that_are_trained() -> None:
    config = TrainingConfig()
    for value in HOSTILE:
        with pytest.raises((TypeError, ValueError), match="configs"):
            Population.from_configs(value)
    with pytest.raises(ValueError, match=r"^configs must be at least one TrainingConfig, got none$"):
        Population.from_configs([])
    with pytest.raises(ValueError, match=r"^configs\[1\] has model='count-bigram', which is not trained in steps$"):
        Population.from_configs([config, replace(config, model="count-bigram")])
    with pytest.raises(TypeError, match=r"^configs\[1\] must be TrainingConfig, got float$"):
        Population.from_configs([config, math.pi])  # type: ignore[list-item]
