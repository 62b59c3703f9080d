"""What Python functions say of values that their arguments cannot have: each is named, and nothing crashes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch

from charlm import MLP, CountBigram, NeuralBigram, Trainer, Vocabulary, data, sample
from charlm._memory import check_memory, is_out_of_memory
from charlm.batches import BatchSampler
from charlm.optimizers import OptimizerOptions, create
from charlm.schedules import Schedule

HOSTILE = [None, True, -1, -(2**63), 2**64, 10**400, 1.5, math.nan, math.inf, "", "x", b"x", [], [1], {}, object(), 1j]
HOSTILE += [torch.tensor(1), torch.tensor([1.5]), print, float]


@pytest.fixture
def dataset(tmp_path: Path) -> data.Dataset:
    return small_names.load(tmp_path)


def check_named(name: str, call: Callable[[Any], object], fine: tuple[object, ...] = ()) -> None:
    """Every hostile value that is not fine is refused by an error that names the argument."""
    for value in HOSTILE:
        if any(value is known or (type(value) is type(known) and value == known) for known in fine):
            call(value)
            continue
        with pytest.raises((ValueError, TypeError, OSError), match=name):
            call(value)


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("context_length", (None,)),
        ("mode", (None,)),
        ("split", (None,)),
        ("seed", (-1, -(2**63), None)),
        ("tokens", (None,)),
        ("limit_vocab", (None,)),
        ("min_count", (None,)),
        ("encoding", (None,)),
        ("vocabulary", (None,)),
        ("dev", (None,)),
        ("test", (None,)),
    ],
)
def test_load(dataset: data.Dataset, tmp_path: Path, name: str, fine: tuple[object, ...]) -> None:
    path = tmp_path / "small_names.txt"
    named = "path|dev|test|" if name in ("dev", "test") else name
    check_named(named, lambda value: data.load(path, **{name: value}), fine)


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("model", ()),
        ("vocabulary", ()),
        ("n", ()),
        ("temperature", (1.5,)),
        ("top_k", (None,)),
        ("top_p", (None,)),
        ("prefix", ("", [])),
        ("suffix", ("", [])),
        ("contains", ("", [])),
        ("regex", (None, "")),
        ("ban", ([],)),
        ("exclude", ([],)),
        ("novel", ()),
        ("unique", (True,)),
        ("min_length", ()),
        ("seed", (None, -1, -(2**63))),
        ("max_length", (None,)),
        ("stop", (True,)),
    ],
)
def test_sample(name: str, fine: tuple[object, ...]) -> None:
    arguments = {"model": NeuralBigram(4), "vocabulary": Vocabulary("abc"), "n": 2, "max_length": 5}
    fine = (*fine, 2**64) if name == "temperature" else fine
    check_named(name, lambda value: sample(**{**arguments, name: value}), fine)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("model", ()),
        ("dataset", ()),
        ("learning_rate", (1.5, 2**64)),
        ("optimizer", ()),
        ("momentum", ()),
        ("betas", ()),
        ("eps", (1.5, 2**64)),
        ("weight_decay", (1.5, 2**64)),
        ("schedule", ()),
        ("total_steps", (None,)),
        ("warmup_steps", ()),
        ("milestones", (None, [], [1])),
        ("decay_factor", (1.5, 2**64)),
        ("max_grad_norm", (None, 1.5, 2**64)),
        ("batch_size", ()),
        ("backend", (None,)),
        ("seed", (-1, -(2**63))),
        ("device", (None,)),
    ],
)
def test_trainer(dataset: data.Dataset, name: str, fine: tuple[object, ...]) -> None:
    def create_trainer(value: Any) -> Trainer:
        arguments: dict[str, Any] = {"model": NeuralBigram(len(dataset.vocabulary)), "dataset": dataset}
        return Trainer(**{**arguments, "learning_rate": 0.1, "backend": "eager", name: value})

    check_named(name, create_trainer, fine)


def test_trainer_methods(dataset: data.Dataset) -> None:
    trainer = Trainer(NeuralBigram(len(dataset.vocabulary)), dataset, learning_rate=0.1, backend="eager")
    check_named("steps", lambda value: trainer.run(value))
    check_named("split", lambda value: trainer.evaluate(value))
    check_named("state", lambda value: trainer.load_state_dict(value))
    state = trainer.state_dict()
    check_named("model state", lambda value: trainer.load_state_dict({**state, "model": value}))
    check_named("weight", lambda value: trainer.load_state_dict({**state, "model": {"weight": value}}))


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        ("eager", ArithmeticError, r"at learning rate 1e\+308: lower learning_rate"),
        ("ops", ArithmeticError, r"at learning rate 1e\+308: lower learning_rate"),
        ("fused", ValueError, r"learning_rates\[0\] must be between .* in float32, got 1e\+308"),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_that_float32_cannot_hold(
    dataset: data.Dataset, backend: str, error: type[Exception], message: str, optimizer: str
) -> None:
    model = MLP(len(dataset.vocabulary), 3, 2, 4)
    trainer = Trainer(
        model, dataset, learning_rate=1e308, weight_decay=1e30, optimizer=optimizer, batch_size=8, backend=backend
    )
    with pytest.raises(error, match=message):
        trainer.run(20)


def test_vocabulary() -> None:
    check_named("characters|boundary", lambda value: Vocabulary(value), ("x",))
    check_named("boundary", lambda value: Vocabulary("ab", boundary=value), ("x",))
    check_named("text", lambda value: Vocabulary.from_text(value), ("x",))
    vocabulary = Vocabulary("xyz")
    check_named("text", lambda value: vocabulary.encode(value), ("", "x"))
    for value in (None, 5, 1.5, {}, print, "x", [None], ["x"], [1.5], [{}], [[1], [2, 3]]):
        with pytest.raises((TypeError, ValueError), match="tokens"):
            vocabulary.decode(value)  # type: ignore[arg-type]
    for token in (10**400, -(2**63) - 1, 2**63):
        with pytest.raises(IndexError, match=r"tokens\[1\] = "):
            vocabulary.decode([0, token])


def test_models() -> None:
    arguments = {"vocab_size": 5, "context_length": 2, "embedding_dim": 2, "hidden_dim": 3}
    for name in arguments:
        check_named(name, lambda value, name=name: MLP(**{**arguments, name: value}))  # type: ignore[misc]
    check_named("softcap", lambda value: MLP(5, 2, 2, 3, softcap=value), (None, 1.5, 2**64))
    check_named("direct", lambda value: MLP(5, 2, 2, 3, direct=value), (True,))
    check_named("backend", lambda value: MLP(5, 2, 2, 3, backend=value))
    check_named("vocab_size", CountBigram)
    check_named("smoothing", lambda value: CountBigram(3, value), (1.5, 2**64))


# Splits

TOKENS = torch.tensor([1, 2, 0, 3, 1, 2, 1, 0], dtype=torch.int16)
ENDS = torch.tensor([4], dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": [1, 2]}, TypeError, "tokens must be Tensor, got list"),
        ({"tokens": TOKENS.long()}, TypeError, "tokens must have a dtype among torch.uint8, torch.int16, "),
        ({"tokens": TOKENS.view(2, 4)}, ValueError, "tokens must have one dimension, got shape (2, 4)"),
        ({"tokens": TOKENS.to("meta")}, ValueError, "tokens must be on the CPU, got meta"),
        ({"tokens": TOKENS[:5]}, ValueError, "tokens must have 6 elements for ends[-1] = 4 examples"),
        ({"ends": None}, TypeError, "ends must be Tensor, got NoneType"),
        ({"ends": ENDS.short()}, TypeError, "ends must have a dtype among torch.int32, torch.int64, got torch.int16"),
        (
            {"ends": ENDS[:0]},
            ValueError,
            "ends must be numbers of examples, none of them less than the one before",
        ),
        ({"ends": -ENDS}, ValueError, "ends must be numbers of examples"),
        ({"ends": torch.tensor([4, 2])}, ValueError, "ends must be numbers of examples"),
        ({"ends": torch.tensor([2**62])}, ValueError, "tokens must have 4611686018427387906 elements"),
        ({"context_length": 0}, ValueError, "context_length must be a positive integer, got 0"),
        ({"context_length": 2**31 - 1}, ValueError, "tokens must have 2147483651 elements"),
        ({"vocab_size": -1}, ValueError, "vocab_size must be a positive integer, got -1"),
    ],
)
def test_a_split_of_what_does_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"tokens": TOKENS, "ends": ENDS, "context_length": 2, "vocab_size": 5}
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        data.Split(**{**arguments, **change})


@pytest.mark.parametrize(("position", "token"), [(2, -1), (0, 5), (7, 30000), (5, -32768)])
def test_a_token_out_of_range_is_named_before_it_is_looked_up(position: int, token: int) -> None:
    tokens = TOKENS.clone()
    tokens[position] = token
    message = rf"^tokens\[{position}\] = {token} is out of range for a vocabulary of 5 tokens$"
    with pytest.raises(IndexError, match=message):
        data.Split(tokens, ENDS, 2, 5).distinct()


def test_a_split_may_have_more_tokens_than_it_needs() -> None:
    split = data.Split(TOKENS, ENDS, 2, 5)
    assert split.targets.tolist() == [0, 3, 1, 2]
    assert split.contexts.tolist() == [[1, 2], [2, 0], [0, 3], [3, 1]]
    assert int(split.distinct().counts.values.sum()) == 4


# Memory


def test_what_cannot_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch, dataset: data.Dataset) -> None:
    monkeypatch.setattr("charlm._memory.total_memory", lambda: 10**6)
    with pytest.raises(ValueError, match=r"hidden_dim=100000 takes 8 MB of memory, and this machine has 1 MB$"):
        MLP(5, 2, 2, 100_000)
    with pytest.raises(ValueError, match=r"^the table of a bigram with vocab_size=1000 takes 4 MB of memory"):
        CountBigram(1000)
    with pytest.raises(ValueError, match=r"^a batch with batch_size=100000 takes 2\.4 MB of memory"):
        BatchSampler(10, 100_000, seed=1)
    with pytest.raises(ValueError, match=r"^training 250,000 parameters with adamw takes 4 MB of memory"):
        create(torch.nn.Linear(500, 500, bias=False), OptimizerOptions(optimizer="adamw"), learning_rate=0.1)
    check_memory("what just fits", 10**6)
    with pytest.raises(ValueError, match=r"^everything takes inf EB of memory"):
        check_memory("everything", 10**400)


def test_memory_errors_are_known() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("wires crossed"))


def test_a_schedule_that_ends_at_infinity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^decay_factor=1e\+300 makes the learning rate infinite after 2 milestones$"):
        Schedule("step", 0.1, milestones=[1, 2], decay_factor=1e300)
