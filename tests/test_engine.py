"""Whole steps in C++: the curve, parameters and optimizer state of eager PyTorch, for every option and shape."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from charlm import engine
from charlm.models import MLP, NeuralBigram

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "weight_decay": {"optimizer": "sgd", "weight_decay": 0.01},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
    # eps: gradients that are 0 stay it
    "adamw": {"optimizer": "adamw", "betas": (0.9, 0.98), "eps": 1e-4, "weight_decay": 0.1},
}
# (V, T, D, H, B): widths around the vector registers, one class, one position, many; one tile of contexts and several.
SHAPES = [
    (27, 3, 10, 200, 32),
    (27, 3, 10, 200, 900),
    (27, 8, 3, 17, 700),
    (1, 1, 1, 1, 1),
    (2, 2, 2, 3, 5),
    (5, 16, 4, 33, 64),
    (65, 2, 48, 64, 130),
    (300, 2, 17, 20, 70),
    (1100, 3, 5, 70, 600),
]


@dataclass
class Run:
    """A model, its optimizer state, and the examples it is trained on."""

    model: nn.Module
    contexts: Tensor
    targets: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.model.parameters())

    def new_state(self) -> list[Tensor]:
        adamw = self.options.get("optimizer") == "adamw"
        tensors = 2 if adamw else 1 if self.options.get("momentum") else 0
        return [torch.zeros_like(p) for _ in range(tensors) for p in self.parameters]

    def eager(self, batches: Tensor, learning_rates: Tensor) -> Tensor:
        options = dict(self.options)
        clip = options.pop("max_grad_norm", None)
        options.pop("softcap", None)
        name = options.pop("optimizer", "sgd")
        kind = torch.optim.AdamW if name == "adamw" else torch.optim.SGD
        optimizer = kind(self.parameters, lr=0.1, **({"weight_decay": 0.0} | options))
        losses = []
        for batch, rate in zip(batches, learning_rates.tolist(), strict=True):
            optimizer.zero_grad()
            loss = self.model.loss(self.contexts[batch], self.targets[batch])
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(self.parameters, clip)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    def fused(self, batches: Tensor, learning_rates: Tensor, state: list[Tensor] | None = None, **more: Any) -> Tensor:
        state = self.new_state() if state is None else state
        examples = (self.contexts, self.targets, batches, learning_rates)
        return engine.train_steps(self.parameters, state, *examples, **self.options, **more)


def make_run(shape: tuple[int, ...], dtype: torch.dtype, *, direct: bool = False, **options: Any) -> Run:
    vocab_size, length, dim, hidden, _ = shape
    generator = torch.Generator().manual_seed(1)
    model = MLP(
        vocab_size,
        length,
        dim,
        hidden,
        direct=direct,
        softcap=options.get("softcap"),
        backend="eager",
        dtype=dtype,
        generator=generator,
    )
    tokens = min(vocab_size, 6) if length > 1 else vocab_size  # few, so that contexts repeat
    contexts = torch.randint(tokens, (400, length), generator=generator)
    contexts[0] = vocab_size - 1
    targets = torch.randint(vocab_size, (400,), generator=generator)
    return Run(model, contexts, targets, options)


def make_batches(steps: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    batches = torch.randint(400, (steps, size), generator=generator)
    return batches, torch.linspace(0.05, 0.01, steps, dtype=torch.float64)


def assert_agrees(first: Run, second: Run, losses: tuple[Tensor, Tensor], tolerance: float) -> None:
    torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)
    for one, other in zip(first.parameters, second.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_equal_eager(shape: tuple[int, ...], instruction_set: str) -> None:
    batches, rates = make_batches(4, shape[-1])
    for options in ({}, OPTIMIZERS["adamw"]):
        eager, fused = (make_run(shape, torch.float64, **options) for _ in range(2))
        assert_agrees(eager, fused, (eager.eager(batches, rates), fused.fused(batches, rates)), 1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("size", [40, 700])
def test_options_equal_eager(
    optimizer: str, clip: float | None, direct: bool, softcap: float | None, size: int
) -> None:
    options = {**OPTIMIZERS[optimizer], "max_grad_norm": clip, "softcap": softcap}
    batches, rates = make_batches(6, size)
    eager, fused = (make_run((27, 4, 7, 40, size), torch.float64, direct=direct, **options) for _ in range(2))
    assert_agrees(eager, fused, (eager.eager(batches, rates), fused.fused(batches, rates)), 1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_thousand_steps_equal_eager(optimizer: str) -> None:
    batches, rates = make_batches(1000, 32)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        eager, fused = (make_run((27, 3, 4, 30, 32), dtype, **OPTIMIZERS[optimizer]) for _ in range(2))
        torch.testing.assert_close(
            eager.eager(batches, rates), fused.fused(batches, rates), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_calls_continue_each_other_bit_for_bit(optimizer: str) -> None:
    batches, rates = make_batches(12, 9)
    once, twice = (make_run((27, 3, 5, 20, 9), torch.float32, **OPTIMIZERS[optimizer]) for _ in range(2))
    losses = once.fused(batches, rates)
    state = twice.new_state()
    first = twice.fused(batches[:5], rates[:5], state)
    rest = twice.fused(batches[5:], rates[5:], state, first_step=5)
    assert torch.equal(losses, torch.cat([first, rest]))
    for one, other in zip(once.parameters, twice.parameters, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("shape", "options"), [((27, 3, 10, 64, 1500), {}), ((1100, 3, 5, 70, 600), {"momentum": 0.9})]
)
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...], options: dict[str, Any], threads: None) -> None:
    batches, rates = make_batches(3, shape[-1])
    results = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        run = make_run(shape, torch.float32, **options)
        run.contexts = torch.randint(27, (2000, 3), generator=torch.Generator().manual_seed(4))
        run.targets = run.contexts[:, 0].roll(1)
        results.append([run.fused(batches * 5 % 2000, rates), *run.parameters])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_full_batch_equals_eager(optimizer: str) -> None:
    rates = torch.linspace(0.1, 0.02, 5, dtype=torch.float64)
    eager, fused = (make_run((27, 3, 6, 50, 0), torch.float64, **OPTIMIZERS[optimizer]) for _ in range(2))
    contexts, index = eager.contexts.unique(dim=0, return_inverse=True)
    dense = torch.zeros(len(contexts), 27, dtype=torch.int64)
    dense.index_put_((index, eager.targets), torch.ones(400, dtype=torch.int64), accumulate=True)
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), (dense > 0).sum(1).cumsum(0)])
    rows = (contexts, row_ptr, dense.nonzero()[:, 1], dense[dense > 0])
    losses = engine.train_full_steps(fused.parameters, fused.new_state(), *rows, rates, **fused.options)
    everything = torch.arange(400).expand(5, 400)
    assert_agrees(eager, fused, (eager.eager(everything, rates), losses), 1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("vocab_size", [1, 2, 27, 150])
def test_bigram_equals_eager(optimizer: str, clip: float | None, vocab_size: int, instruction_set: str) -> None:
    batches, rates = make_batches(5, 300)
    runs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(5)
        model = NeuralBigram(vocab_size, backend="eager", dtype=torch.float64)
        nn.init.normal_(model.weight, generator=generator)
        contexts = torch.randint(vocab_size, (400, 1), generator=generator)
        targets = torch.randint(vocab_size, (400,), generator=generator)
        runs.append(Run(model, contexts, targets, {**OPTIMIZERS[optimizer], "max_grad_norm": clip}))
    eager, fused = runs
    assert_agrees(eager, fused, (eager.eager(batches, rates), fused.fused(batches, rates)), 1e-10)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_of_any_dtype_and_stride(dtype: torch.dtype) -> None:
    batches, rates = make_batches(3, 20)
    plain, other = (make_run((27, 3, 4, 16, 20), torch.float64) for _ in range(2))
    tokens = torch.randint(27, (402,), generator=torch.Generator().manual_seed(6))
    plain.contexts, other.contexts = tokens.unfold(0, 3, 1).contiguous(), tokens.to(dtype).unfold(0, 3, 1)
    other.targets = plain.targets.to(dtype)
    assert torch.equal(plain.fused(batches, rates), other.fused(batches.int(), rates))


def test_context_index_names_the_context_of_each_example() -> None:
    batches, rates = make_batches(3, 50)
    plain, indexed = (make_run((27, 3, 4, 16, 50), torch.float64) for _ in range(2))
    losses = plain.fused(batches, rates)
    indexed.contexts, index = indexed.contexts.unique(dim=0, return_inverse=True)
    assert_agrees(plain, indexed, (losses, indexed.fused(batches, rates, context_index=index)), 1e-12)


def test_large_logits_stay_finite(instruction_set: str) -> None:
    batches, rates = make_batches(2, 30)
    for softcap in (None, 50.0):
        runs = [make_run((27, 3, 4, 16, 30), torch.float32, softcap=softcap) for _ in range(2)]
        for run in runs:
            with torch.no_grad():
                run.model.bias2[3] = 300.0
                run.model.bias2[4] = -300.0
        assert_agrees(*runs, (runs[0].eager(batches, rates), runs[1].fused(batches, rates)), 1e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"contexts": lambda c: c.index_fill(0, torch.tensor([7]), 27)}, IndexError, r"contexts\[7, 0\] = 27 is out"),
        ({"targets": lambda t: t.index_fill(0, torch.tensor([9]), -1)}, IndexError, r"targets\[9\] = -1 is out of"),
        ({"batches": lambda b: b + 390}, IndexError, r"batch_indices\[0, \d+\] = \d+ is out of range for 400 examples"),
        ({"contexts": lambda c: c.float()}, ValueError, "contexts must have an integer dtype, got float32"),
        ({"targets": lambda t: t[:-1]}, ValueError, r"targets must have shape \(N=400,\), got \(399,\)"),
        ({"rates": lambda r: r[:-1]}, ValueError, r"batch_indices must have shape \(S=2, B\), got \(3, 20\)"),
        (
            {"contexts": lambda c: c[:, :2]},
            ValueError,
            r"weight1 must have shape \(H, T\*D\) = \(16, 8\), got \(16, 12\)",
        ),
        ({"softcap": lambda _: -1.0}, ValueError, "softcap must be positive and finite, or None, got -1.0"),
        ({"momentum": lambda _: 1.5}, ValueError, r"momentum must be in \[0, 1\), got 1.5"),
        ({"optimizer": lambda _: "lion"}, ValueError, "optimizer must be one of sgd, adamw, got 'lion'"),
        ({"state": lambda s: [torch.zeros(3)]}, ValueError, "optimizer_state must have 0 tensors, got 1"),
    ],
)
def test_bad_arguments_change_nothing(change: dict[str, Any], error: type[Exception], message: str) -> None:
    run = make_run((27, 3, 4, 16, 20), torch.float32)
    batches, rates = make_batches(3, 20)
    arguments: dict[str, Any] = {"contexts": run.contexts, "targets": run.targets, "batches": batches, "rates": rates}
    arguments |= {"softcap": None, "momentum": 0.0, "optimizer": "sgd", "state": []}
    for name, function in change.items():
        arguments[name] = function(arguments[name])
    before = [p.clone() for p in run.parameters]
    with pytest.raises(error, match=message):
        engine.train_steps(
            run.parameters,
            arguments["state"],
            arguments["contexts"],
            arguments["targets"],
            arguments["batches"],
            arguments["rates"],
            softcap=arguments["softcap"],
            momentum=arguments["momentum"],
            optimizer=arguments["optimizer"],
        )
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def test_other_python_threads_run_meanwhile() -> None:
    run = make_run((27, 3, 10, 200, 400), torch.float32)
    batches, rates = make_batches(400, 400)
    finished: list[float] = []

    def train() -> None:
        run.fused(batches, rates)
        finished.append(time.monotonic())

    thread = threading.Thread(target=train)
    ticks = []
    thread.start()
    while thread.is_alive():
        ticks.append(time.monotonic())
        time.sleep(0.001)
    thread.join()
    assert sum(tick < finished[0] for tick in ticks) >= 5
