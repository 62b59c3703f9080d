"""Steps captured in a graph: eager PyTorch's numbers in chunks of any length, resumed bit for bit, captured once.

Without a GPU a stand-in captures: see `cuda_ways.RecordedGraph`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
from cases import device
from cuda_ways import RecordedGraph, capture_step
from torch import Tensor
from trainers import OPTIMIZERS, assert_same_state, make_mlp, make_trainer

from charlm import NeuralBigram, Trainer, data
from charlm.backends import BACKENDS, examples, graphed
from charlm.backends.graphed import GraphedBackend
from charlm.models import LanguageModel

CAPTURE = graphed.capture  # which tests replace
CHUNKS = (1, 5, 2, 12)
OPTIONS: dict[str, dict[str, Any]] = {
    **OPTIMIZERS,
    "weight decay": {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.01},
    "clipped": {"optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.05},
    "clipped momentum": {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.8, "max_grad_norm": 0.05},
    "clipped adamw": {"optimizer": "adamw", "learning_rate": 0.01, "eps": 1e-4, "max_grad_norm": 0.05},
}
MODELS: dict[str, Callable[[data.Dataset], LanguageModel]] = {
    "mlp": make_mlp,
    "direct": lambda dataset: make_mlp(dataset, direct=True),
    "softcap": lambda dataset: make_mlp(dataset, softcap=1.5),
    "direct and softcap": lambda dataset: make_mlp(dataset, direct=True, softcap=1.5),
    "bigram": lambda dataset: NeuralBigram(len(dataset.vocabulary), dtype=torch.float64),
}


@pytest.fixture
def dataset(tmp_path: Path) -> data.Dataset:
    return small_names.load(tmp_path)


@pytest.fixture(autouse=True)
def captures(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each capture. The backend "graphed" is there for trainers to ask for."""
    done: list[None] = []
    real = CAPTURE if device.type == "cuda" else capture_step

    def counted(step: Callable[[], None], where: torch.device) -> Callable[[], None]:
        done.append(None)
        return real(step, where)

    monkeypatch.setattr(graphed, "capture", counted)
    monkeypatch.setitem(BACKENDS, "graphed", GraphedBackend)
    return done


def trainer_of(model: LanguageModel, dataset: data.Dataset, backend: str = "graphed", **options: Any) -> Trainer:
    chosen = {"learning_rate": 0.1, "batch_size": 8, "device": device, **options}
    return Trainer(model, dataset, backend=backend, **chosen)


def run_in_chunks(trainer: Trainer) -> Tensor:
    return torch.cat([trainer.run(steps) for steps in CHUNKS])


def assert_agree(found: Trainer, expected: Trainer, losses: Tensor, tolerance: float = 1e-10) -> None:
    """After as many steps as CHUNKS has, which the second has yet to make."""
    torch.testing.assert_close(losses, expected.run(sum(CHUNKS)), rtol=0.0, atol=tolerance)
    for part in ("model", "optimizer"):
        one, other = found.state_dict()[part], expected.state_dict()[part]
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=0.0, atol=tolerance, msg=f"{part} {name}")


# The numbers


@pytest.mark.parametrize("optimizer", OPTIONS)
@pytest.mark.parametrize("batch_size", [8, "full"])
def test_the_losses_and_the_state_are_those_of_eager(
    dataset: data.Dataset, optimizer: str, batch_size: int | str, captures: list[None]
) -> None:
    schedule = {"schedule": "cosine", "total_steps": 40, "warmup_steps": 3}
    trainers = [
        make_trainer(dataset, backend=backend, batch_size=batch_size, **schedule, **OPTIONS[optimizer])
        for backend in ("graphed", "eager")
    ]
    assert_agree(*trainers, run_in_chunks(trainers[0]))
    assert len(captures) == 1
    assert trainers[0].optimizer.param_groups[0]["lr"] == trainers[0].schedule(sum(CHUNKS) - 1)
    assert all(parameter.grad is None for parameter in trainers[0].model.parameters())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch_size", [8, "full"])
def test_every_model_trains(dataset: data.Dataset, model: str, batch_size: int | str) -> None:
    found, expected = (
        trainer_of(MODELS[model](dataset), dataset, backend, batch_size=batch_size, **OPTIMIZERS["adamw"])
        for backend in ("graphed", "eager")
    )
    assert_agree(found, expected, run_in_chunks(found))


def test_float32_trains_as_with_the_ops(dataset: data.Dataset) -> None:
    found, expected = (
        trainer_of(make_mlp(dataset, dtype=torch.float32), dataset, backend, **OPTIMIZERS["momentum"])
        for backend in ("graphed", "ops")
    )
    assert_agree(found, expected, run_in_chunks(found), tolerance=2e-6)


@pytest.mark.parametrize("limit", ["_STEPS_AT_ONCE", "_TOKENS_AT_ONCE"])
def test_a_call_of_many_steps_is_made_in_chunks(
    dataset: data.Dataset, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer_of(make_mlp(dataset), dataset, **OPTIMIZERS["adamw"])
    losses = whole.run(20)
    # So many tokens are those of six steps.
    monkeypatch.setattr(graphed, limit, {"_STEPS_AT_ONCE": 6, "_TOKENS_AT_ONCE": 6 * 8 * 4}[limit])
    cut = trainer_of(make_mlp(dataset), dataset, **OPTIMIZERS["adamw"])
    found = cut._backend.run(cut._batches.read(0, 20), cut.schedule.range(0, 20))  # type: ignore[union-attr]
    assert len(cut._backend._graph.chunk.losses) == 6  # type: ignore[attr-defined]
    assert torch.equal(found.cpu(), losses)
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(int(cut.optimizer.state[parameter]["step"]) == 20 for parameter in cut.model.parameters())


def test_no_steps_are_no_losses(dataset: data.Dataset, captures: list[None]) -> None:
    trainer = make_trainer(dataset, backend="graphed")
    nothing = torch.empty(0, dtype=torch.float64)
    for batches in (torch.empty(0, 8, dtype=torch.int64), None):
        assert trainer._backend.run(batches, nothing).shape == (0,)
    assert captures == []


def test_contexts_of_a_large_text_are_looked_up_batch_by_batch(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = make_trainer(dataset, backend="graphed").run(20)
    monkeypatch.setattr(examples, "_INDEXED_EXAMPLES", 100)
    monkeypatch.setattr(data.Split, "distinct", None)  # which would take long
    assert torch.equal(make_trainer(dataset, backend="graphed").run(20), losses)


@pytest.mark.parametrize("resident", [True, False])
def test_a_full_batch_in_parts(
    dataset: data.Dataset, resident: bool, monkeypatch: pytest.MonkeyPatch, captures: list[None]
) -> None:
    monkeypatch.setattr("charlm.backends.eager._LOGITS_AT_ONCE", 1500)
    if not resident:
        monkeypatch.setattr(graphed, "_RESIDENT_BYTES", 100)
    options = {"batch_size": "full", **OPTIMIZERS["momentum"]}
    found, expected = (make_trainer(dataset, backend=backend, **options) for backend in ("graphed", "eager"))
    assert_agree(found, expected, run_in_chunks(found))
    assert len(captures) == resident


def test_a_frozen_parameter_stays(dataset: data.Dataset) -> None:
    trainers = []
    for backend in ("graphed", "ops"):
        model = make_mlp(dataset)
        model.embedding.requires_grad_(False)
        trainers.append(trainer_of(model, dataset, backend, max_grad_norm=0.5, **OPTIMIZERS["adamw"]))
    before = trainers[0].model.get_parameter("embedding").clone()
    torch.testing.assert_close(trainers[0].run(12), trainers[1].run(12), rtol=0.0, atol=1e-10)
    assert torch.equal(trainers[0].model.get_parameter("embedding"), before)


# Captured once, and anew where it must be


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_bits_in_one_run_or_many_and_after_resuming(
    dataset: data.Dataset, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charlm.batches._BLOCK_ELEMENTS", 64)
    options = {**OPTIMIZERS[optimizer], "schedule": "linear", "total_steps": 40, "backend": "graphed"}
    whole = make_trainer(dataset, **options)
    losses = whole.run(20)
    stopped = make_trainer(dataset, **options)
    assert torch.equal(torch.cat([stopped.run(3), stopped.run(4)]), losses[:7])
    state = stopped.state_dict()
    stopped.run(5)
    resumed = make_trainer(dataset, seed_of_model=99, **options)
    resumed.run(2)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.run(13), losses[7:])
    assert_same_state(resumed, whole)


def test_batches_of_another_size_are_captured_anew(dataset: data.Dataset, captures: list[None]) -> None:
    found, expected = (make_trainer(dataset, backend=backend) for backend in ("graphed", "ops"))
    rates = torch.full((3,), 0.1, dtype=torch.float64)
    for number, size in enumerate((8, 8, 5, 8)):
        indices = torch.arange(3 * size).view(3, size) * 7 % len(dataset.train)
        losses = [trainer._backend.run(indices, rates) for trainer in (found, expected)]
        torch.testing.assert_close(*losses, rtol=0.0, atol=1e-12)
        assert len(captures) == (1, 1, 2, 3)[number]


def test_other_tensors_are_captured_anew(dataset: data.Dataset, captures: list[None]) -> None:
    """As torch's optimizers put them in the place of their own, and users in that of a parameter's."""
    options = {**OPTIMIZERS["adamw"], "backend": "graphed"}
    whole, other = (make_trainer(dataset, **options) for _ in range(2))
    losses = whole.run(12)
    assert torch.equal(other.run(4), losses[:4])
    other.optimizer.load_state_dict(other.optimizer.state_dict())
    for parameter in other.model.parameters():
        other.optimizer.state[parameter]["exp_avg"] = other.optimizer.state[parameter]["exp_avg"].clone()
    assert torch.equal(other.run(4), losses[4:8])
    other.model.get_parameter("bias1").data = other.model.get_parameter("bias1").data.clone()
    assert torch.equal(other.run(4), losses[8:])
    assert len(captures) == 4
    assert_same_state(whole, other)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_capture_that_fails_changes_nothing(
    dataset: data.Dataset, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(step: Callable[[], None], where: torch.device) -> Callable[[], None]:
        step()
        raise RuntimeError("out of memory")

    trainer, untouched = (make_trainer(dataset, backend="graphed", **OPTIMIZERS[optimizer]) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(graphed, "capture", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer.run(5)
    assert_same_state(trainer, untouched)
    assert torch.equal(trainer.run(5), untouched.run(5))


def test_a_rate_that_the_dtype_cannot_hold_changes_nothing(dataset: data.Dataset) -> None:
    trainer, untouched = (
        trainer_of(make_mlp(dataset, dtype=torch.float32), dataset, learning_rate=rate) for rate in (1e39, 0.1)
    )
    message = (
        r"^learning_rates\[0\] must be between 1.17549e-38 and 3.40282e\+38 to be a number in float32, got 1e\+39$"
    )
    with pytest.raises(ValueError, match=message):
        trainer.run(3)
    assert_same_state(trainer, untouched)


def test_what_is_made_of_a_split_is_shared_and_goes_with_it(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = data.Split.distinct

    def counted(split: data.Split, *arguments: Any, **options: Any) -> data.Distinct:
        calls.append(None)
        return real(split, *arguments, **options)

    monkeypatch.setattr(data.Split, "distinct", counted)
    for batch_size in (8, "full"):
        for _ in range(3):
            make_trainer(dataset, backend="graphed", batch_size=batch_size).run(1)
    assert len(calls) == 2
    kept = len(examples._kept)
    split = dataset.train
    del dataset
    part = next(split.parts(50))
    examples.all_counts(part, 3, device)
    assert len(examples._kept) == kept + 1
    del part
    assert len(examples._kept) == kept


def test_torchs_default_device_changes_nothing(dataset: data.Dataset) -> None:
    """What is made on "meta" has no values, so none of it can be in the results."""
    for batch_size in (8, "full"):
        options = {"backend": "graphed", "batch_size": batch_size, **OPTIMIZERS["adamw"]}
        expected, trainer = (make_trainer(dataset, **options) for _ in range(2))
        with torch.device("meta"):
            found = trainer.run(4)
        assert torch.equal(found, expected.run(4))


# What captures on a GPU, with stand-ins for what torch has of one


@pytest.mark.cpu
def test_a_step_is_made_before_it_is_captured_on_the_same_stream(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    current = ["default"]

    class Stream:
        name = "side"

        def wait_stream(self, other: Stream) -> None:
            events.append(f"{self.name} waits for {other.name}")

    class Default(Stream):
        name = "default"

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, current[0] = current[0], stream.name
        yield
        current[0] = before

    @contextmanager
    def recording(graph: RecordedGraph, *, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        events.append(f"captures {capture_error_mode}")
        with on(stream), graph.recording():
            yield

    @contextmanager
    def on_device(where: torch.device) -> Iterator[None]:
        events.append(f"on {where}")
        yield
        events.append("leaves it")

    made = GraphedBackend._make_step

    def make_step(self: GraphedBackend, chunk: Any) -> None:
        events.append(f"step on {current[0]}")
        made(self, chunk)
        chunk.counter.zero_()  # that of the capture makes none on a GPU

    stand_ins = {"Stream": Stream, "current_stream": Default, "stream": on, "graph": recording, "device": on_device}
    for name, stand_in in {**stand_ins, "CUDAGraph": RecordedGraph}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(graphed, "capture", CAPTURE)
    with monkeypatch.context() as patch:
        patch.setattr(GraphedBackend, "_make_step", make_step)
        patch.setattr(RecordedGraph, "replay", lambda graph: None)
        trainer = make_trainer(dataset, backend="graphed", **OPTIMIZERS["momentum"])
        untouched = make_trainer(dataset, backend="graphed", **OPTIMIZERS["momentum"]).state_dict()
        trainer.run(1)
    warm_up = ["side waits for default", "step on side", "default waits for side"]
    assert events == ["on cpu", *warm_up, "captures thread_local", "step on side", "leaves it"]
    state = trainer.state_dict()  # nothing was replayed
    for part in ("model", "optimizer"):
        assert all(torch.equal(value, untouched[part][name]) for name, value in state[part].items())
