"""Small models and their trainers, by backend and optimizer: what tests of training share."""

from __future__ import annotations

from typing import Any

import torch
from cases import device

from charlm import MLP, Trainer, data

# What resuming, chunking and agreement between backends are tested with: every kind of optimizer state.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.1},
}


def make_mlp(dataset: data.Dataset, *, seed: int = 1, dtype: torch.dtype = torch.float64, **options: Any) -> MLP:
    generator = torch.Generator().manual_seed(seed)
    return MLP(len(dataset.vocabulary), 3, 4, 16, generator=generator, dtype=dtype, **options)


def make_trainer(dataset: data.Dataset, *, backend: str = "eager", seed_of_model: int = 1, **options: Any) -> Trainer:
    options = {"learning_rate": 0.1, "batch_size": 8, "device": device, **options}
    return Trainer(make_mlp(dataset, seed=seed_of_model), dataset, backend=backend, **options)


def assert_same_state(first: Trainer, second: Trainer) -> None:
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    assert one["step"] == other["step"]
    for part in ("model", "optimizer", "batches"):
        assert one[part].keys() == other[part].keys()
        for name in one[part]:
            assert torch.equal(one[part][name], other[part][name]), f"{part} {name}"
