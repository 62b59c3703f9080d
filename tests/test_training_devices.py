"""Where a model is trained: which backend that is, and what stays on the CPU whatever torch's default device is."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import small_names
import torch
from cases import device, generator
from command_line import CommandLine
from torch import Tensor

from charlm import _C, MLP, CountBigram, Trainer, backends, data, evaluate, sample
from charlm.backends import BACKENDS, why_no_kernels


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
    for model, expected in [(make_mlp(dataset), "fused"), (other, "ops"), (half, "ops")]:
        assert Trainer(model, dataset, learning_rate=0.1).backend == expected
        assert model.backend == "ops"


def test_a_frozen_parameter_is_for_the_ops_and_stays(dataset: data.Dataset) -> None:
    models = [make_mlp(dataset).requires_grad_(True) for _ in range(2)]
    for model in models:
        model.embedding.requires_grad_(False)
    before = models[0].embedding.clone()
    message = (
        "^backend 'fused' trains all parameters of a model, but here embedding must not change: use 'ops', which is "
        "the default then$"
    )
    with pytest.raises(ValueError, match=message):
        Trainer(models[0], dataset, learning_rate=0.1, backend="fused", device=device)
    trainer, expected = (
        Trainer(model, dataset, learning_rate=0.1, backend=backend, device=device)
        for model, backend in zip(models, (None, "eager"), strict=True)
    )
    assert trainer.backend == "ops"
    torch.testing.assert_close(trainer.run(20), expected.run(20), rtol=0.0, atol=1e-4)
    assert torch.equal(models[0].embedding.cpu(), before)


def test_the_default_on_the_device_trains(dataset: data.Dataset) -> None:
    trainer = Trainer(make_mlp(dataset), dataset, learning_rate=0.1, device=device)
    assert trainer.backend == "fused"
    expected = Trainer(make_mlp(dataset), dataset, learning_rate=0.1, backend="eager", device="cpu")
    torch.testing.assert_close(trainer.run(50), expected.run(50), rtol=0.0, atol=1e-4)
    assert trainer.evaluate("dev") == pytest.approx(expected.evaluate("dev"), abs=1e-4)
    names = sample(trainer.model, dataset.vocabulary, 5, seed=3)
    assert all(set(name) <= set(dataset.vocabulary.characters) for name in names)


@pytest.mark.parametrize("backend", ["ops", "fused"])
def test_a_backend_that_cannot_train_there_is_named(dataset: data.Dataset, backend: str) -> None:
    message = (
        f"backend '{backend}' cannot be used: charlm has no kernels for meta; backend 'eager', which is plain PyTorch, "
        "works there$"
    )
    with pytest.raises(ValueError, match=message):
        Trainer(make_mlp(dataset, "meta"), dataset, learning_rate=0.1, backend=backend)


def test_what_cuda_says_of_a_gpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "why_no_kernels", {0: None, 1: "it is too old"}.__getitem__)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert why_no_kernels(torch.device("cuda", 0)) is None
    assert why_no_kernels(torch.device("cuda", 1)) == "it is too old"
    assert why_no_kernels(torch.device("cuda")) == "it is too old"
    assert why_no_kernels(torch.device("cpu")) is None
    assert why_no_kernels(torch.device("mps")) == (
        "charlm has no kernels for mps; backend 'eager', which is plain PyTorch, works there"
    )


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a model is, it seems to be on a GPU that the ops have no kernels for."""
    for module in (backends, backends.eager, backends.fused, sys.modules[Trainer.__module__]):
        monkeypatch.setattr(module, "why_no_kernels", lambda _: "cuda:1 is too old; backend 'eager' works there")


def test_the_default_without_kernels_is_eager_and_says_why_once(dataset: data.Dataset, old_gpu: None) -> None:
    model = make_mlp(dataset)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer = Trainer(model, dataset, learning_rate=0.1)
        losses = trainer.run(20)
        trainer.evaluate("dev")
    (warning,) = warned
    assert str(warning.message) == "training with backend 'eager': cuda:1 is too old; backend 'eager' works there"
    assert warning.filename == __file__
    # Nor could the model itself compute with the ops.
    assert (trainer.backend, model.backend) == ("eager", "eager")
    expected = Trainer(make_mlp(dataset), dataset, learning_rate=0.1, backend="eager").run(20)  # without a warning
    assert torch.equal(losses, expected)


def test_a_backend_that_was_chosen_is_refused_or_used_without_a_word(dataset: data.Dataset, old_gpu: None) -> None:
    for backend in ("ops", "fused"):
        message = f"^backend '{backend}' cannot be used: cuda:1 is too old; backend 'eager' works there$"
        with pytest.raises(ValueError, match=message):
            Trainer(make_mlp(dataset), dataset, learning_rate=0.1, backend=backend)
    model = make_mlp(dataset)
    assert Trainer(model, dataset, learning_rate=0.1, backend="eager").backend == "eager"
    assert model.backend == "eager"


@pytest.mark.parametrize(("rank", "kind"), [("0", "warning"), ("3", "warning (rank 3)")])
def test_train_says_in_a_line_why_it_does_not_use_the_ops(
    run_charlm: CommandLine, names: Path, old_gpu: None, monkeypatch: pytest.MonkeyPatch, rank: str, kind: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    config = ("--context-length", 2, "--embedding-dim", 2, "--hidden-dim", 4, "--batch-size", 8, "--steps", 20)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = run_charlm("train", names, *config, "--quiet", "--out", "run")
    assert result.err == f"{kind}: training with backend 'eager': cuda:1 is too old; backend 'eager' works there\n"
    assert result.code == 0
    assert "backend eager" in result.out
    monkeypatch.setenv("RANK", "0")
    assert run_charlm.error("train", names, *config, "--quiet", "--out", "other", "--backend", "ops") == (
        "backend 'ops' cannot be used: cuda:1 is too old; backend 'eager' works there"
    )


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
