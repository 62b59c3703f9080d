"""Many trainers that make their steps together: each is to the bit what it would be by itself."""

from __future__ import annotations

import copy
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
from torch import Tensor
from trainers import OPTIMIZERS, assert_same_state, make_mlp, make_trainer

from charlm import NeuralBigram, NonFiniteLossError, Population, Trainer, data, engine
from charlm.backends import FusedBackend, run_together

pytestmark = pytest.mark.cpu

FUSED: dict[str, Any] = {"backend": "fused", "device": "cpu"}


@pytest.fixture
def dataset(tmp_path: Path) -> data.Dataset:
    return small_names.load(tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of models in each call of the engine."""
    sizes: list[int] = []
    for name in ("train_population", "train_full_population", "train_steps", "train_full_steps"):
        function = getattr(engine, name)

        def counted(
            parameters: Any, *arguments: Any, name: str = name, function: Any = function, **more: Any
        ) -> Tensor:
            sizes.append(len(parameters) if name.endswith("population") else 1)
            return function(parameters, *arguments, **more)

        monkeypatch.setattr(engine, name, counted)
    return sizes


def mixed(dataset: data.Dataset) -> list[Trainer]:
    """Two shapes, dtypes, batch sizes, kinds of state, a bigram, other backends; and what one group may differ in."""
    wide = Trainer(make_mlp(dataset, direct=True), dataset, learning_rate=0.05, batch_size=8, seed=5, **FUSED)
    return [
        make_trainer(dataset, **FUSED),
        make_trainer(dataset, backend="eager"),
        make_trainer(dataset, **FUSED, seed=7, seed_of_model=2, weight_decay=0.01, max_grad_norm=0.1),
        wide,
        make_trainer(dataset, **FUSED, **OPTIMIZERS["adamw"]),
        make_trainer(dataset, **FUSED, **{**OPTIMIZERS["adamw"], "learning_rate": 0.003, "betas": (0.5, 0.9)}),
        make_trainer(dataset, **FUSED, schedule="cosine", total_steps=30, warmup_steps=3),
        Trainer(NeuralBigram(len(dataset.vocabulary)), dataset, learning_rate=5.0, batch_size=8, **FUSED),
        make_trainer(dataset, **FUSED, batch_size="full"),
        make_trainer(dataset, **FUSED, batch_size="full", seed_of_model=3, learning_rate=0.5),
        make_trainer(dataset, **FUSED, batch_size=11),
        Trainer(make_mlp(dataset, softcap=2.0), dataset, learning_rate=0.1, batch_size=8, **FUSED),
        make_trainer(dataset, backend="ops", **OPTIMIZERS["momentum"]),
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_trainer_is_what_it_would_be_by_itself(
    dataset: data.Dataset, count: int, threads: None, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(count)
    monkeypatch.setattr("charlm.batches._BLOCK_ELEMENTS", 64)  # chunks end where a block of batches does
    population, alone = Population(mixed(dataset)), mixed(dataset)
    losses = torch.cat([population.run(steps) for steps in (1, 0, 20, 9)], dim=1)
    assert losses.shape == (len(alone), 30)
    assert losses.dtype == torch.float64
    assert set(calls) == {1, 2, 4}
    assert population.errors == [None] * len(alone)
    for trainer, single, own in zip(population.trainers, alone, losses, strict=True):
        assert torch.equal(own.to(single.losses.dtype), single.run(30))
        assert torch.equal(trainer.losses, single.losses[21:])
        assert trainer.losses.dtype == single.losses.dtype
        assert_same_state(trainer, single)
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [
            group["lr"] for group in single.optimizer.param_groups
        ]
    expected = torch.tensor([single.evaluate("dev") for single in alone], dtype=torch.float64)
    assert torch.equal(population.evaluate("dev"), expected)
    # They go on by themselves, or in another population, as if nothing had been.
    for trainer, single in zip(population.trainers[:3], alone, strict=False):
        assert torch.equal(trainer.run(5), single.run(5))
    again = Population(population.trainers[:6]).run(4)
    for own, single in zip(again, alone, strict=False):
        assert torch.equal(own.to(single.losses.dtype), single.run(4))


def test_models_of_one_shape_are_one_call(dataset: data.Dataset, calls: list[int]) -> None:
    trainers = [make_trainer(dataset, **FUSED, seed=seed, learning_rate=0.01 * (1 + seed)) for seed in range(5)]
    trainers[0].run(7)  # not at the step of the others
    calls.clear()
    Population(trainers).run(1)
    assert calls == [5]
    assert [trainer.step for trainer in trainers] == [8, 1, 1, 1, 1]


def test_contexts_of_a_large_text_are_looked_up_in_one_call_too(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    def trainers() -> list[Trainer]:
        return [make_trainer(dataset, **FUSED, seed=seed) for seed in range(3)]

    indexed = Population(trainers()).run(20)
    monkeypatch.setattr("charlm.backends.examples._INDEXED_EXAMPLES", 100)
    calls.clear()
    assert torch.equal(Population(trainers()).run(20), indexed)
    assert set(calls) == {3}


def test_distinct_contexts_are_found_once_for_all(dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    distinct = data.Split.distinct

    def counted(split: data.Split, step: int = 1, *, with_index: bool = True) -> Any:
        found.append(with_index)
        return distinct(split, step, with_index=with_index)

    monkeypatch.setattr(data.Split, "distinct", counted)
    sizes: tuple[Any, ...] = (8, "full")
    population = Population([make_trainer(dataset, **FUSED, batch_size=size) for size in sizes for _ in range(3)])
    population.run(3)
    population.evaluate("train")
    population.evaluate("dev")
    population.trainers[0].evaluate("dev")
    assert sorted(found) == [False, False, True]


# What goes wrong with one of them


def diverging(dataset: data.Dataset, **options: Any) -> list[Trainer]:
    """The second and the last diverge."""
    rates = (0.1, 1e300, 0.2, 0.05, 1e300)
    return [make_trainer(dataset, learning_rate=rate, seed=seed, **options) for seed, rate in enumerate(rates)]


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_a_model_that_diverges_stops_no_other(dataset: data.Dataset, backend: str) -> None:
    options = {**FUSED, "backend": backend}
    population = Population(diverging(dataset, **options))
    losses = population.run(40)
    for number, (trainer, own) in enumerate(zip(population.trainers, losses, strict=True)):
        single = diverging(dataset, **options)[number]
        error = population.errors[number]
        if number in (1, 4):
            assert isinstance(error, NonFiniteLossError)
            with pytest.raises(NonFiniteLossError) as alone:
                single.run(40)
            assert str(error) == str(alone.value)
            assert "lower learning_rate" in str(error)
            finite = own.isfinite()
            bad = int(finite.logical_not().nonzero()[0])
            assert 0 < bad < 40
            assert own[bad + 1 :].isnan().all()
            assert torch.equal(trainer.losses, own[:bad])
        else:
            assert error is None
            assert torch.equal(own, single.run(40))
            assert_same_state(trainer, single)
    dev = population.evaluate("dev")
    assert dev.isnan().tolist() == [False, True, False, False, True]
    # They stay out of what follows.
    steps = [trainer.step for trainer in population.trainers]
    more = population.run(3)
    assert more.isnan().all(dim=1).tolist() == [False, True, False, False, True]
    assert [trainer.step - step for trainer, step in zip(population.trainers, steps, strict=True)] == [3, 0, 3, 3, 0]
    assert [len(trainer.losses) for trainer in population.trainers] == [3, 0, 3, 3, 0]


def test_losses_after_a_divergence_do_not_depend_on_chunks(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr("charlm.trainer._CHUNK_SECONDS", seconds)
        losses.append(Population(diverging(dataset, **FUSED)).run(40))
    assert torch.equal(losses[0].nan_to_num(-1.0), losses[1].nan_to_num(-1.0))


def test_what_follows_the_first_loss_that_is_not_finite_is_nan(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charlm.trainer._CHUNK_SECONDS", 1e9)
    population = Population([make_trainer(dataset, **FUSED)])

    def run(batches: Tensor, rates: Tensor) -> Tensor:
        return torch.where(torch.arange(len(rates)) == 4, math.inf, 2.0)

    monkeypatch.setattr(population.trainers[0]._backend, "run", run)
    losses = population.run(11)  # a chunk of one step, and one of ten
    assert losses[0, :6].tolist() == [2.0, 2.0, 2.0, 2.0, 2.0, math.inf]
    assert losses[0, 6:].isnan().all()
    assert population.trainers[0].losses.tolist() == [2.0] * 5


def test_when_all_have_diverged_the_rest_is_nan(dataset: data.Dataset) -> None:
    population = Population([make_trainer(dataset, **FUSED, learning_rate=1e300)])
    losses = population.run(1000)
    assert losses.shape == (1, 1000)
    assert losses[0, 500:].isnan().all()
    assert population.trainers[0].step < 1000
    assert population.run(5).isnan().all()
    assert population.evaluate("dev").isnan().all()


def test_an_option_that_a_dtype_cannot_hold_is_an_error_once_all_others_have_made_their_steps(
    dataset: data.Dataset, calls: list[int]
) -> None:
    def trainer(rate: float) -> Trainer:
        model = make_mlp(dataset, dtype=torch.float32)
        return Trainer(model, dataset, learning_rate=rate, batch_size=8, **FUSED)

    population = Population([trainer(0.1), trainer(1e39), trainer(0.2)])
    with pytest.raises(ValueError, match=r"^learning_rates\[0\] must be between .* in float32, got 1e\+39$"):
        population.run(10)
    assert calls == [3, 1, 1, 1]
    assert [one.step for one in population.trainers] == [1, 0, 1]
    assert population.errors == [None] * 3
    for number, rate in ((0, 0.1), (2, 0.2)):
        single = trainer(rate)
        assert torch.equal(population.trainers[number].losses, single.run(1))
        assert torch.equal(population.losses[number], single.losses)
        assert_same_state(population.trainers[number], single)
    assert population.losses[1].isnan().all()


def test_an_error_of_torch_that_means_a_rate_ends_only_its_model(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    population = Population([make_trainer(dataset, **FUSED, seed=seed) for seed in range(3)])

    def refuse(*arguments: Any) -> Tensor:
        raise RuntimeError("value cannot be converted to type float without overflow")

    monkeypatch.setattr(population.trainers[1]._backend, "run", refuse)
    monkeypatch.setattr(FusedBackend, "run_group", staticmethod(refuse))
    losses = population.run(5)
    assert [error is None for error in population.errors] == [True, False, True]
    assert "the steps from 0 on overflow at learning rate 0.1" in str(population.errors[1])
    assert losses.isnan().all(dim=1).tolist() == [False, True, False]
    assert len(population.trainers[1].losses) == 0


def test_backends_in_any_order_get_what_is_theirs(dataset: data.Dataset) -> None:
    trainers, alone = (
        [make_trainer(dataset, **FUSED, seed=s, batch_size=(4, 8)[s % 2]) for s in range(4)] for _ in "ab"
    )
    pieces = [trainer._next_steps(3) for trainer in trainers]
    outcomes = run_together([t._backend for t in trainers], [p[0] for p in pieces], [p[1] for p in pieces])
    for outcome, single in zip(outcomes, alone, strict=True):
        assert isinstance(outcome, Tensor)
        assert torch.equal(outcome, single.run(3))


# Interruption and progress


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_leaves_all_at_one_step(dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charlm.trainer._CHUNK_SECONDS", 0.0)

    def trainers() -> list[Trainer]:
        return [make_trainer(dataset, backend=b, device="cpu", seed=s) for s in (1, 2) for b in ("fused", "eager")]

    population = Population(trainers())

    def press(steps: int, losses: Tensor) -> None:
        if steps == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        population.run(1000, on_progress=press)
    assert [trainer.step for trainer in population.trainers] == [7] * 4
    assert population.losses.shape == (4, 7)
    rest = population.run(5)
    for trainer, own, single in zip(population.trainers, rest, trainers(), strict=True):
        assert torch.equal(own, single.run(12)[7:])
        assert_same_state(trainer, single)


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_in_the_middle_of_a_chunk_waits_for_its_end(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = [make_trainer(dataset, **FUSED, seed=1), make_trainer(dataset, backend="eager", device="cpu")]
    population, run = Population(trainers), FusedBackend.run

    def press(*arguments: Any) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return run(*arguments)

    monkeypatch.setattr(FusedBackend, "run", press)
    with pytest.raises(KeyboardInterrupt):
        population.run(1000)
    assert [trainer.step for trainer in trainers] == [1, 1]
    assert [len(trainer.losses) for trainer in trainers] == [1, 1]


def test_progress_is_reported_with_the_losses_of_all(dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charlm.trainer._CHUNK_SECONDS", 0.0)
    reports: list[tuple[int, Tensor]] = []
    population = Population([make_trainer(dataset, **FUSED, seed=seed) for seed in range(3)])
    population.run(4)
    losses = population.run(6, on_progress=lambda steps, losses: reports.append((steps, losses)))
    assert [steps for steps, _ in reports] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(torch.stack([own for _, own in reports], dim=1), losses)
    reports.clear()
    monkeypatch.setattr("charlm.trainer._CHUNK_SECONDS", 1e9)
    population.run(6, on_progress=lambda steps, losses: reports.append((steps, losses)))
    assert [steps for steps, _ in reports] == [6]


# State


def test_a_state_goes_on_to_the_bit(dataset: data.Dataset) -> None:
    def trainers() -> list[Trainer]:
        adamw = [make_trainer(dataset, **FUSED, **OPTIMIZERS["adamw"], seed=seed) for seed in range(2)]
        return [*diverging(dataset, **FUSED), *adamw]

    whole, first, second = (Population(trainers()) for _ in range(3))
    losses = whole.run(50)
    first.run(40)
    state = copy.deepcopy(first.state_dict())
    first.run(3)
    second.load_state_dict(state)
    rest = second.run(10)
    assert torch.equal(rest.nan_to_num(-1.0), losses[:, 40:].nan_to_num(-1.0))
    assert list(map(str, second.errors)) == list(map(str, whole.errors))
    assert [type(error) for error in second.errors] == [type(error) for error in whole.errors]
    for one, other in zip(second.trainers, whole.trainers, strict=True):
        if other in [whole.trainers[1], whole.trainers[4]]:
            continue
        assert_same_state(one, other)
    second.load_state_dict(Population(trainers()).state_dict())
    assert second.errors == [None] * 7
    assert torch.equal(second.run(50).nan_to_num(-1.0), losses.nan_to_num(-1.0))


def test_a_bad_state_changes_nothing(dataset: data.Dataset) -> None:
    population = Population([make_trainer(dataset, **FUSED, seed=seed) for seed in range(3)])
    good = population.state_dict()
    population.run(5)
    before = population.state_dict()

    def with_trainer(number: int, **changes: Any) -> dict[str, Any]:
        trainers = [dict(state) for state in good["trainers"]]
        trainers[number].update(changes)
        return {**good, "trainers": trainers}

    for state, message in (
        ({"trainers": []}, r"^state must have the keys \['errors', 'trainers'\], got \['trainers'\]$"),
        ({**good, "trainers": good["trainers"][:2]}, "^state 'trainers' must be those of 3 trainers, got 2$"),
        ({**good, "errors": [None]}, "^state 'errors' must be those of 3 trainers, got 1$"),
        (with_trainer(2, step=-1), r"^trainers\[2\]: state 'step' must be an integer >= 0, got -1$"),
        (with_trainer(1, model={}), r"^trainers\[1\]: model state must have the tensors"),
        (with_trainer(1, step=10**9), r"^trainers\[1\]: batches state 'start' must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            population.load_state_dict(state)
    for state, message in (
        ({**good, "errors": [None, None, 3]}, r"^state 'errors'\[2\] must be str or None, got int$"),
        ({**good, "trainers": [1, 2, 3]}, r"^state 'trainers'\[0\] must be dict, got int$"),
        ({**good, "trainers": "abc"}, "^state 'trainers' must be list or tuple, got str$"),
        (with_trainer(2, model=3), r"^trainers\[2\]: model state must be dict, got int$"),
    ):
        with pytest.raises(TypeError, match=message):
            population.load_state_dict(state)
    for own, old in zip(population.state_dict()["trainers"], before["trainers"], strict=True):
        assert own["step"] == old["step"] == 5
        for part in ("model", "optimizer", "batches"):
            assert all(torch.equal(own[part][name], old[part][name]) for name in old[part])
