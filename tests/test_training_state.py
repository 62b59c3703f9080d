"""The state of a trainer: resuming is bit exact, across backends too, and what does not fit changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
from cases import device  # noqa: F401  by which --device knows that these tests run there
from torch import Tensor
from trainers import OPTIMIZERS, assert_same_state, make_trainer

from charlm import data


@pytest.fixture
def dataset(tmp_path: Path) -> data.Dataset:
    return small_names.load(tmp_path)


@pytest.mark.parametrize("backend", ["eager", "ops", "fused"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resuming_is_bit_exact(
    dataset: data.Dataset, optimizer: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charlm.batches._BLOCK_ELEMENTS", 64)
    options = {**OPTIMIZERS[optimizer], "schedule": "cosine", "total_steps": 40, "warmup_steps": 5, "backend": backend}
    whole = make_trainer(dataset, **options)
    losses = whole.run(40)

    stopped = make_trainer(dataset, **options)
    stopped.run(19)
    state = stopped.state_dict()
    stopped.run(3)
    # Another start: everything has to come from the state.
    resumed = make_trainer(dataset, seed_of_model=99, **options)
    resumed.load_state_dict(state)
    assert resumed.step == 19
    assert torch.equal(resumed.run(21), losses[19:])
    assert_same_state(resumed, whole)


def test_resuming_full_batches_is_bit_exact(dataset: data.Dataset) -> None:
    whole, stopped, resumed = (make_trainer(dataset, batch_size="full") for _ in range(3))
    losses = whole.run(6)
    stopped.run(2)
    resumed.load_state_dict(stopped.state_dict())
    assert torch.equal(resumed.run(4), losses[2:])


def test_a_state_moves_between_backends(dataset: data.Dataset) -> None:
    options = OPTIMIZERS["adamw"]
    whole = make_trainer(dataset, backend="eager", **options)
    losses = whole.run(20)
    first = make_trainer(dataset, backend="ops", **options)
    first.run(10)
    second = make_trainer(dataset, backend="eager", **options)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.run(10), losses[10:], rtol=0.0, atol=1e-10)


def test_a_state_that_does_not_fit_changes_nothing(dataset: data.Dataset) -> None:
    trainer = make_trainer(dataset, **OPTIMIZERS["adamw"])
    trainer.run(3)
    before = make_trainer(dataset, **OPTIMIZERS["adamw"])
    before.load_state_dict(trainer.state_dict())

    def state(part: str, **changes: Tensor) -> dict[str, Any]:
        other = before.state_dict()
        other["model"] = {name: value + 1 for name, value in other["model"].items()}
        other[part] = {**other[part], **changes}
        return other

    for bad, message in [
        ({"step": 3}, "state must have the keys"),
        (make_trainer(dataset, **OPTIMIZERS["sgd"]).state_dict(), "optimizer state must have the tensors"),
        (make_trainer(dataset, batch_size="full", **OPTIMIZERS["adamw"]).state_dict(), "batches state must have"),
        (state("model", bias1=torch.zeros(3, dtype=torch.float64)), r"'bias1' must have shape \(16,\).*got \(3,\)"),
        (state("model", bias1=torch.zeros(16)), "'bias1' must have .*float64, got .*float32"),
        ({**before.state_dict(), "step": -1}, "state 'step' must be an integer >= 0, got -1"),
        (state("batches", start=torch.tensor(-1)), r"'start' must be in 0 \.\. step=3, got -1"),
        (state("batches", start=torch.tensor(4)), r"'start' must be in 0 \.\. step=3, got 4"),
        (state("batches", generator=torch.full((5056,), 255, dtype=torch.uint8)), "'generator' is not the state"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer.load_state_dict(bad)
        assert_same_state(trainer, before)


def test_a_state_is_a_copy(dataset: data.Dataset) -> None:
    trainer = make_trainer(dataset, **OPTIMIZERS["momentum"])
    state = trainer.state_dict()
    weights = state["model"]["weight1"].clone()
    trainer.run(2)
    assert torch.equal(state["model"]["weight1"], weights)
    assert not state["optimizer"]["weight1.momentum_buffer"].any()
    assert state["step"] == 0
