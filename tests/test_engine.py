"""Whole steps in C++: the curve, parameters and optimizer state of eager PyTorch, for every option and shape."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from engine_runs import OPTIMIZERS, assert_agrees, make_batches, make_bigram, make_run

from charlm import engine
from charlm.optimizers import OptimizerOptions

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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_full_batch_equals_eager(optimizer: str) -> None:
    rates = torch.linspace(0.1, 0.02, 5, dtype=torch.float64)
    eager, fused = (make_run((27, 3, 6, 50, 0), torch.float64, **OPTIMIZERS[optimizer]) for _ in range(2))
    losses = engine.train_full_steps(fused.parameters, fused.new_state(), *fused.counts(), rates, **fused.options)
    everything = torch.arange(400).expand(5, 400)
    assert_agrees(eager, fused, (eager.eager(everything, rates), losses), 1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("vocab_size", [1, 2, 27, 150])
def test_bigram_equals_eager(optimizer: str, clip: float | None, vocab_size: int, instruction_set: str) -> None:
    batches, rates = make_batches(5, 300)
    options = {**OPTIMIZERS[optimizer], "max_grad_norm": clip}
    eager, fused = (make_bigram(vocab_size, torch.float64, **options) for _ in range(2))
    assert_agrees(eager, fused, (eager.eager(batches, rates), fused.fused(batches, rates)), 1e-10)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_of_any_dtype_and_stride(dtype: torch.dtype) -> None:
    batches, rates = make_batches(3, 20)
    plain, other = (make_run((27, 3, 4, 16, 20), torch.float64) for _ in range(2))
    tokens = torch.randint(27, (402,), generator=torch.Generator().manual_seed(6))
    plain.contexts, other.contexts = tokens.unfold(0, 3, 1).contiguous(), tokens.to(dtype).unfold(0, 3, 1)
    other.targets = plain.targets.to(dtype)
    assert torch.equal(plain.fused(batches, rates), other.fused(batches.int(), rates))


@pytest.mark.parametrize("full_batch", [False, True])
def test_what_shares_memory_until_it_is_written_to_keeps_its_values(full_batch: bool) -> None:
    """A lazy clone, as torch makes them, is a copy of its own from the first write on."""
    run = make_run((27, 3, 4, 16, 20), torch.float32, momentum=0.9)
    originals = [*run.parameters, *run.new_state()]
    before = [tensor.detach().clone() for tensor in originals]
    clones = [torch._lazy_clone(tensor.detach()) for tensor in originals]
    parameters, state = clones[: len(run.parameters)], clones[len(run.parameters) :]
    batches, rates = make_batches(3, 20)
    if full_batch:
        engine.train_full_steps(parameters, state, *run.counts(), rates, **run.options)
    else:
        engine.train_steps(parameters, state, run.contexts, run.targets, batches, rates, **run.options)
    for clone, original, expected in zip(clones, originals, before, strict=True):
        assert torch.equal(original, expected)
        assert not torch.equal(clone, expected)


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


# The first example of the batches below.
USED = make_batches(3, 20)[0][0, :1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"contexts": lambda c: c.index_fill(0, USED, 27)}, IndexError, rf"contexts\[{int(USED)}, 0\] = 27 is out"),
        ({"targets": lambda t: t.index_fill(0, USED, -1)}, IndexError, rf"targets\[{int(USED)}\] = -1 is out of"),
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
        ({"options": lambda _: {"momentum": 0.5}}, TypeError, "options must be OptimizerOptions, got dict"),
        ({"state": lambda s: [torch.zeros(3)]}, ValueError, "optimizer_state must have 0 tensors, got 1"),
    ],
)
def test_bad_arguments_change_nothing(change: dict[str, Any], error: type[Exception], message: str) -> None:
    run = make_run((27, 3, 4, 16, 20), torch.float32)
    batches, rates = make_batches(3, 20)
    arguments: dict[str, Any] = {"contexts": run.contexts, "targets": run.targets, "batches": batches, "rates": rates}
    arguments |= {"softcap": None, "options": OptimizerOptions(), "state": []}
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
            arguments["options"],
            softcap=arguments["softcap"],
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


def test_only_examples_of_the_batches_are_read() -> None:
    batches, rates = make_batches(3, 20)
    plain, other = (make_run((27, 3, 4, 16, 20), torch.float64) for _ in range(2))
    unused = torch.ones(400, dtype=torch.bool).index_fill(0, batches.flatten(), False)
    other.contexts[unused], other.targets[unused] = 99, -99
    assert torch.equal(plain.fused(batches, rates), other.fused(batches, rates))


def test_indexed_contexts_are_read_only_where_a_batch_uses_them() -> None:
    batches, rates = make_batches(3, 20)
    run = make_run((27, 3, 4, 16, 20), torch.float64)
    run.contexts, index = run.contexts.int().unique(dim=0, return_inverse=True)
    used = index[batches.flatten()]
    for row, is_used in ((int(used[0]), True), (min(set(range(len(run.contexts))) - set(used.tolist())), False)):
        before = run.contexts[row].clone()
        run.contexts[row, 1] = -1
        if is_used:
            with pytest.raises(IndexError, match=rf"contexts\[{row}, 1\] = -1 is out of range for 27 tokens"):
                run.fused(batches, rates, context_index=index)
        else:
            assert run.fused(batches, rates, context_index=index).isfinite().all()
        run.contexts[row] = before
