"""Where a model is trained: which backend that is, and what stays on the CPU whatever torch's default device is."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_names
import torch
from cases import device, generator
from torch import Tensor

from charlm import _C, MLP, CountBigram, Trainer, data, evaluate, sample
from charlm.backends import BACKENDS


@pytest.fixture
def dataset(tmp_path: Path) -> data.Dataset:
    return small_names.load(tmp_path)


def make_mlp(dataset: data.Dataset, where: torch.device | str = "cpu") -> MLP:
    return MLP(len(dataset.vocabulary), 3, 4, 16, generator=generator(1), device=where)


class OtherMLP(MLP):
    """One that the engine does not know."""


def test_the_default_is_the_fastest_backend_that_takes_the_model(dataset: data.Dataset) -> None:
    other = OtherMLP(len(dataset.vocabulary), 3, 4, 16)
    half = make_mlp(dataset).to(torch.bfloat16)
    cases = [(make_mlp(dataset), "fused"), (other, "ops"), (half, "ops"), (make_mlp(dataset, "meta"), "eager")]
    for model, expected in cases:
        assert Trainer(model, dataset, learning_rate=0.1).backend == expected
        # Where the ops have no kernels, the model itself could not compute with them either.
        assert model.backend == ("eager" if expected == "eager" else "ops")


def test_the_default_on_the_device_trains(dataset: data.Dataset) -> None:
    trainer = Trainer(make_mlp(dataset), dataset, learning_rate=0.1, device=device)
    assert trainer.backend == ("fused" if device.type == "cpu" else "ops")
    expected = Trainer(make_mlp(dataset), dataset, learning_rate=0.1, backend="eager", device="cpu")
    torch.testing.assert_close(trainer.run(50), expected.run(50), rtol=0.0, atol=1e-4)
    assert trainer.evaluate("dev") == pytest.approx(expected.evaluate("dev"), abs=1e-4)
    names = sample(trainer.model, dataset.vocabulary, 5, seed=3)
    assert all(set(name) <= set(dataset.vocabulary.characters) for name in names)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("ops", "backend 'ops' has no kernels for meta, where the model is: use 'eager' or 'compile'$"),
        ("fused", "backend 'fused' trains on the CPU, but the model is on meta: use 'ops' or 'eager'"),
    ],
)
def test_a_backend_that_cannot_train_there_is_named(dataset: data.Dataset, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(make_mlp(dataset, "meta"), dataset, learning_rate=0.1, backend=backend)


@pytest.mark.parametrize("built", [False, True])
def test_kernels_for_gpus_are_those_of_the_build(built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from charlm.backends import has_kernels

    monkeypatch.setattr(_C, "build_info", lambda: {"cuda": "90" if built else None})
    assert has_kernels(torch.device("cuda", 1)) == built
    assert has_kernels(torch.device("cpu"))


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"compile"}))
@pytest.mark.parametrize("batch_size", [8, "full"])
def test_torchs_default_device_changes_nothing(tmp_path: Path, backend: str, batch_size: int | str) -> None:
    """Notebooks set it to a GPU. What is made on "meta" has no values, so none of it can be in the results."""

    def results() -> list[object]:
        dataset = small_names.load(tmp_path)
        trainer = Trainer(make_mlp(dataset), dataset, learning_rate=0.1, backend=backend, batch_size=batch_size)
        losses = trainer.run(3)
        trainer.load_state_dict(trainer.state_dict())
        names = sample(trainer.model, dataset.vocabulary, 3, seed=1)
        return [losses.tolist(), trainer.evaluate("dev"), evaluate(trainer.model, dataset.test), names]

    expected = results()
    with torch.device("meta"):
        assert results() == expected


def test_counts_of_a_bigram_are_where_the_model_is(dataset: data.Dataset) -> None:
    def counts(where: torch.device | str) -> Tensor:
        return CountBigram(len(dataset.vocabulary)).to(where).fit(dataset.train).counts.cpu()

    assert torch.equal(counts(device), counts("cpu"))
