"""The trainer: the same curve from every backend, exact full batches, the same bits in one run or many."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
import torch.nn.functional as F
from cases import device, on_cuda
from torch import Tensor
from trainers import OPTIMIZERS, assert_same_state, make_mlp, make_trainer

from charlm import MLP, PRESETS, CountBigram, NeuralBigram, NonFiniteLossError, Trainer, data, evaluate
from charlm.backends import BACKENDS
from charlm.batches import BatchSampler
from charlm.interrupts import SIGNALS, exit_code, termination_as_interrupt


@pytest.fixture
def dataset(tmp_path: Path) -> data.Dataset:
    return small_names.load(tmp_path)


# The steps themselves


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_the_trainer_does_what_a_plain_pytorch_loop_does(
    dataset: data.Dataset, optimizer: str, max_grad_norm: float | None
) -> None:
    options = OPTIMIZERS[optimizer]
    trainer = make_trainer(dataset, seed=7, max_grad_norm=max_grad_norm, **options)
    losses = trainer.run(20)

    model = make_mlp(dataset)
    parameters = list(model.parameters())
    if options["optimizer"] == "adamw":
        reference: torch.optim.Optimizer = torch.optim.AdamW(parameters, 0.01, betas=(0.9, 0.98), weight_decay=0.1)
    else:
        others = {name: options[name] for name in ("momentum", "weight_decay") if name in options}
        reference = torch.optim.SGD(parameters, options["learning_rate"], **others)
    generator = torch.Generator().manual_seed(7)
    contexts, targets = dataset.train.contexts.long(), dataset.train.targets.long()
    for step in range(20):
        batch = torch.randint(len(targets), (8,), generator=generator)
        hidden = torch.tanh(F.linear(model.embedding[contexts[batch]].flatten(1), model.weight1, model.bias1))
        loss = F.cross_entropy(F.linear(hidden, model.weight2, model.bias2), targets[batch])
        assert losses[step].item() == pytest.approx(loss.item(), rel=1e-12)
        reference.zero_grad()
        loss.backward()
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        reference.step()
    for parameter, expected in zip(trainer.model.parameters(), parameters, strict=True):
        torch.testing.assert_close(parameter.cpu(), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("direct", [False, True])
def test_eager_ops_and_fused_have_the_same_loss_curve(dataset: data.Dataset, optimizer: str, direct: bool) -> None:
    steps = 60 if on_cuda else 200  # a simulator takes long
    curves = []
    for backend in ("eager", "ops", "fused"):
        model = make_mlp(dataset, direct=direct, softcap=20.0 if direct else None)
        options = {"backend": backend, "device": device, "batch_size": 32, **OPTIMIZERS[optimizer]}
        curves.append(Trainer(model, dataset, **options).run(steps))
    for curve in curves[1:]:
        torch.testing.assert_close(curves[0], curve, rtol=0.0, atol=1e-10)
    assert curves[0][-20:].mean() < curves[0][:20].mean() - steps / 1000


def test_compile_has_the_loss_curve_of_eager_and_resumes_bit_for_bit(dataset: data.Dataset) -> None:
    expected = make_trainer(dataset, backend="eager", **OPTIMIZERS["momentum"]).run(50)
    trainer = make_trainer(dataset, backend="compile", **OPTIMIZERS["momentum"])
    first = trainer.run(20)
    state = trainer.state_dict()
    second = trainer.run(30)
    torch.testing.assert_close(torch.cat([first, second]), expected, rtol=0.0, atol=1e-10)
    trainer.load_state_dict(state)
    assert torch.equal(trainer.run(30), second)


@pytest.mark.parametrize("backend", ["eager", "ops", "fused"])
def test_the_neural_bigram_trains_in_every_backend(dataset: data.Dataset, backend: str) -> None:
    model = NeuralBigram(len(dataset.vocabulary), dtype=torch.float64)
    losses = Trainer(model, dataset, learning_rate=5.0, backend=backend, device=device).run(100)
    table = torch.zeros(len(dataset.vocabulary), len(dataset.vocabulary), dtype=torch.float64)
    batches = BatchSampler(len(dataset.train), 32, seed=42).read(0, 100)
    for step in range(100):
        contexts, targets = dataset.train.batch(batches[step])
        rows, targets = contexts[:, -1].long(), targets.long()
        probabilities = table[rows].softmax(dim=1)
        loss = -probabilities[torch.arange(32), targets].log().mean()
        assert losses[step].item() == pytest.approx(loss.item(), abs=1e-10)
        gradient = probabilities - F.one_hot(targets, table.shape[1])
        table.index_add_(0, rows, gradient, alpha=-5.0 / 32)
    torch.testing.assert_close(model.weight.data.cpu(), table, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("backend", ["eager", "ops", "fused"])
@pytest.mark.parametrize("logits_at_once", [1 << 21, 1000])
def test_a_full_batch_is_the_exact_gradient_of_all_examples(
    dataset: data.Dataset, backend: str, logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charlm.backends.eager._LOGITS_AT_ONCE", logits_at_once)
    trainer = make_trainer(dataset, backend=backend, batch_size="full", learning_rate=0.5)
    losses = trainer.run(3)

    model = make_mlp(dataset, backend="eager")
    for step in range(3):
        model.zero_grad()
        loss = model.loss(dataset.train.contexts, dataset.train.targets)
        assert losses[step].item() == pytest.approx(loss.item(), rel=1e-12)
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.5 * parameter.grad
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trainer.model.get_parameter(name).cpu(), parameter, rtol=1e-11, atol=1e-13)


@pytest.mark.cpu
def test_gradient_descent_finds_the_count_bigram(makemore_names: Path) -> None:
    config = PRESETS["bigram"]
    dataset = data.load(makemore_names, context_length=1)
    model = config.create_model(27)
    trainer = config.create_trainer(model, dataset)
    trainer.run(config.steps)
    counted = evaluate(CountBigram(27).fit(dataset.train), dataset.train)
    assert counted < trainer.evaluate("train") < counted + 0.0001


@pytest.mark.cpu
def test_the_makemore_split_and_a_short_lecture_run(makemore_names: Path) -> None:
    dataset = data.load(makemore_names, split="makemore")
    assert [len(split) for split in (dataset.train, dataset.dev, dataset.test)] == [182_625, 22_655, 22_866]
    config = PRESETS["makemore"]
    model = config.create_model(27)
    trainer = config.create_trainer(model, dataset)
    assert trainer.evaluate("dev") == pytest.approx(math.log(27), abs=0.02)
    losses = trainer.run(1000)
    assert losses.dtype == torch.float32
    assert losses[0].item() == pytest.approx(math.log(27), abs=0.05)
    # The count bigram is at 2.45.
    assert trainer.evaluate("dev") < 2.45


# The lecture: 2.1682 for its first run, 2.1027 with the initialisation mended, 1.9937 for its deepest network.
@pytest.mark.cpu
@pytest.mark.parametrize(("preset", "at_most"), [("makemore", 2.17), ("fast", 2.1027), ("best", 1.97)])
def test_presets_reach_their_dev_loss(makemore_names: Path, preset: str, at_most: float) -> None:
    config = PRESETS[preset]
    dataset = data.load(makemore_names, context_length=config.context_length, split="makemore")
    trainer = config.create_trainer(config.create_model(27), dataset)
    trainer.run(config.steps)
    assert at_most - 0.1 < trainer.evaluate("dev") <= at_most


# Batches


def test_batches_are_the_plain_random_numbers_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charlm.batches._BLOCK_ELEMENTS", 40)
    generator = torch.Generator().manual_seed(3)
    expected = torch.cat([torch.randint(1000, (10, 4), generator=generator) for _ in range(5)])
    sampler = BatchSampler(1000, 4, seed=3)
    step = 0
    while step < 50:
        rows = sampler.read(step, 7)
        assert len(rows) == min(7, sampler.rows_left(step))
        assert sampler.rows_left(step) == 10 - step % 10
        assert torch.equal(rows, expected[step : step + len(rows)])
        # Those of a block may be read again, as after an error, and left out.
        again = step // 10 * 10 + 9 * step % 10
        assert torch.equal(sampler.read(again, 3), expected[again : again + 3][: sampler.rows_left(again)])
        step += len(rows)
    # Blocks of which no row is read are drawn all the same.
    assert torch.equal(BatchSampler(1000, 4, seed=3).read(31, 2), expected[31:33])


@pytest.mark.parametrize("batch_size", [1, 40, 41, 500])
def test_a_batch_may_be_larger_than_a_block(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charlm.batches._BLOCK_ELEMENTS", 40)
    sampler = BatchSampler(10, batch_size, seed=0)
    assert sampler.read(0, 1).shape == (1, batch_size)
    assert sampler.read(5, 1).shape == (1, batch_size)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_run_or_many_give_the_same_bits(
    dataset: data.Dataset, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charlm.batches._BLOCK_ELEMENTS", 64)
    whole = make_trainer(dataset, **OPTIMIZERS[optimizer])
    pieces = make_trainer(dataset, **OPTIMIZERS[optimizer])
    losses = whole.run(30)
    assert torch.equal(losses, torch.cat([pieces.run(steps) for steps in (1, 0, 12, 3, 14)]))
    assert losses.shape == (30,)
    assert whole.step == 30
    assert_same_state(whole, pieces)


def test_other_seeds_draw_other_batches(dataset: data.Dataset) -> None:
    assert torch.equal(make_trainer(dataset, seed=1).run(5), make_trainer(dataset, seed=1).run(5))
    assert not torch.equal(make_trainer(dataset, seed=1).run(5), make_trainer(dataset, seed=2).run(5))


@pytest.mark.parametrize("model", ["mlp", "bigram"])
def test_contexts_of_a_large_text_are_looked_up_batch_by_batch(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    def losses() -> Tensor:
        if model == "mlp":
            return make_trainer(dataset, backend="fused", batch_size=40).run(30)
        return Trainer(NeuralBigram(len(dataset.vocabulary)), dataset, learning_rate=1.0, batch_size=40).run(30)

    indexed = losses()
    monkeypatch.setattr("charlm.backends.examples._INDEXED_EXAMPLES", 100)
    assert len(dataset.train) > 100
    monkeypatch.setattr(data.Split, "distinct", None)  # which would take long
    assert torch.equal(losses(), indexed)


# Interruption, progress, trouble


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_between_two_steps(dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch, signum: int) -> None:
    monkeypatch.setattr("charlm.trainer._CHUNK_SECONDS", 0.0)
    trainer = make_trainer(dataset, **OPTIMIZERS["adamw"])

    def press(step: int, loss: float) -> None:
        if step == 7:
            signal.raise_signal(signum)

    with termination_as_interrupt():
        handlers = [signal.getsignal(one) for one in SIGNALS]
        with pytest.raises(KeyboardInterrupt) as interruption:
            trainer.run(1000, on_progress=press)
        assert [signal.getsignal(one) for one in SIGNALS] == handlers
    assert exit_code(interruption.value) == 128 + signum
    assert 7 <= trainer.step < 10
    uninterrupted = make_trainer(dataset, **OPTIMIZERS["adamw"])
    assert torch.equal(trainer.losses, uninterrupted.run(trainer.step))
    assert_same_state(trainer, uninterrupted)


def test_a_trainer_runs_in_another_thread(dataset: data.Dataset) -> None:
    trainer, expected = make_trainer(dataset), make_trainer(dataset)
    results: list[Tensor] = []
    thread = threading.Thread(target=lambda: results.append(trainer.run(5)))
    thread.start()
    thread.join()
    assert torch.equal(results[0], expected.run(5))


def test_progress_is_reported_now_and_then_and_at_the_end(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[int, float]] = []
    monkeypatch.setattr("charlm.trainer._CHUNK_SECONDS", 1e9)
    losses = make_trainer(dataset).run(20, on_progress=lambda step, loss: reports.append((step, loss)))
    assert reports == [(20, losses[-1].item())]

    monkeypatch.setattr("charlm.trainer._CHUNK_SECONDS", 0.0)
    reports.clear()
    losses = make_trainer(dataset).run(20, on_progress=lambda step, loss: reports.append((step, loss)))
    assert reports == [(step, losses[step - 1].item()) for step in range(1, 21)]


def test_a_loss_that_is_not_finite_names_the_step(dataset: data.Dataset) -> None:
    trainer = make_trainer(dataset, learning_rate=1e308)
    with pytest.raises(NonFiniteLossError, match=r"loss of step \d+ is (nan|inf), at learning rate 1e\+308: lower"):
        trainer.run(100)
    assert trainer.step < 100


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be a positive number, got -1.0"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": "all"}, "batch_size must be a positive integer or 'full', got 'all'"),
        ({"backend": "fast"}, f"backend must be one of {', '.join(BACKENDS)}, got 'fast'"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adamw, got 'lion'"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum is an option of sgd; adamw has betas, got momentum=0.9"),
        ({"optimizer": "adamw", "betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number >= 0, got -0.1"),
        ({"eps": math.inf}, "eps must be a finite number >= 0, got inf"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be a positive number or None, got 0.0"),
        ({"max_grad_norm": math.inf}, "max_grad_norm must be a positive number or None, got inf"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
    ],
)
def test_bad_options_are_named(dataset: data.Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(dataset, **options)


@pytest.mark.parametrize("steps", [-1, 1.5, True])
def test_a_bad_number_of_steps_is_named(dataset: data.Dataset, steps: Any) -> None:
    with pytest.raises(ValueError, match=f"steps must be an integer >= 0, got {steps}"):
        make_trainer(dataset).run(steps)


def test_model_and_dataset_must_fit(dataset: data.Dataset) -> None:
    size = len(dataset.vocabulary)
    for model, message in [
        (CountBigram(size), "model has no parameters to train: a CountBigram"),
        (NeuralBigram(size + 1), f"model has vocab_size={size + 1}, but the vocabulary of the dataset has {size}"),
        (MLP(size, 4, 2, 3), "model has context_length=4, but the dataset has 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            Trainer(model, dataset, learning_rate=0.1)
    with pytest.raises(ValueError, match="split must be one of train, dev, test, got 'all'"):
        make_trainer(dataset).evaluate("all")
