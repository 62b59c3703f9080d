"""Many models in one call of the engine: each gets the very bits of a call of its own, or none changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_runs import OPTIMIZERS, Run, make_bigram, make_run
from torch import Tensor, nn

from charlm import _C, engine
from charlm.optimizers import OptimizerOptions

SHAPE = (27, 3, 4, 30)
STEPS = 4
# What differs from model to model beside weights, batches and rates: options of the optimizer, softcaps.
OWN: dict[str, list[dict[str, Any]]] = {
    "plain": [{}],
    "weight decays": [{"weight_decay": 0.0}, {"weight_decay": 0.1}, {"weight_decay": 1e-3}],
    "clips": [{"max_grad_norm": None}, {"max_grad_norm": 0.05}, {"max_grad_norm": 0.2, "weight_decay": 0.01}],
    "softcaps": [{"softcap": None}, {"softcap": 2.0}, {"softcap": 0.5}],
}


def make_runs(kind: str, dtype: torch.dtype, models: int, own: str = "plain", **options: Any) -> list[Run]:
    """Models that differ in their weights and in what OWN has; "mlp", "direct" or "bigram"."""
    runs = []
    for number in range(models):
        merged = {**options, **OWN[own][number % len(OWN[own])]}
        if kind == "bigram":
            runs.append(make_bigram(27, dtype, **merged))
        else:
            runs.append(make_run(SHAPE, dtype, direct=kind == "direct", **merged))
        with torch.no_grad():
            for parameter in runs[-1].parameters:
                parameter.mul_(1 + 0.3 * number)
    return runs


def make_steps(models: int, size: int, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    batches = torch.randint(400, (models, steps, size), generator=generator)
    return batches, torch.rand(models, steps, generator=generator, dtype=torch.float64) / 10


def arguments(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "parameters": [run.parameters for run in runs],
        "options": [run.options["options"] for run in runs],
        "softcaps": [run.options.get("softcap") for run in runs],
    }


def bits(runs: Sequence[Run], states: Sequence[Sequence[Tensor]], losses: Sequence[Tensor]) -> list[Tensor]:
    return [*losses, *(p for run in runs for p in run.parameters), *(entry for state in states for entry in state)]


def assert_same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# Batches of one tile, and of several that threads share.
@pytest.mark.parametrize("size", [20, 300])
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "direct", "bigram"])
def test_every_model_has_the_bits_of_its_own_call(
    kind: str, optimizer: str, own: str, size: int, threads: None
) -> None:
    if kind == "bigram" and own == "softcaps":
        own = "plain"
    for dtype in (torch.float32, torch.float64):
        models = 5
        batches, rates = make_steps(models, size)
        first_steps = [0, 3, 1, 10, 0]
        alone = make_runs(kind, dtype, models, own, **OPTIMIZERS[optimizer])
        states = [run.new_state() for run in alone]
        losses = [run.fused(batches[i], rates[i], states[i], first_step=first_steps[i]) for i, run in enumerate(alone)]
        expected = bits(alone, states, losses)
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            runs = make_runs(kind, dtype, models, own, **OPTIMIZERS[optimizer])
            states = [run.new_state() for run in runs]
            examples = (runs[0].contexts, runs[0].targets, batches, rates)
            given = arguments(runs)
            together = engine.train_population(
                given.pop("parameters"), states, *examples, first_steps=first_steps, **given
            )
            assert together.shape == (models, STEPS)
            assert together.dtype == dtype
            assert_same_bits(expected, bits(runs, states, together.unbind()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "direct", "bigram"])
def test_every_model_has_the_bits_of_its_own_full_batches(kind: str, optimizer: str, threads: None) -> None:
    models = 3
    _, rates = make_steps(models, 1)
    alone = make_runs(kind, torch.float32, models, "clips", **OPTIMIZERS[optimizer])
    states = [run.new_state() for run in alone]
    losses = [
        engine.train_full_steps(run.parameters, states[i], *run.counts(), rates[i], **run.options)
        for i, run in enumerate(alone)
    ]
    expected = bits(alone, states, losses)
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        runs = make_runs(kind, torch.float32, models, "clips", **OPTIMIZERS[optimizer])
        states = [run.new_state() for run in runs]
        given = arguments(runs)
        together = engine.train_full_population(given.pop("parameters"), states, *runs[0].counts(), rates, **given)
        assert_same_bits(expected, bits(runs, states, together.unbind()))


# Steps of so many different contexts are work for several threads themselves: of fewer models than threads, or of one
# more, the last ones get all threads.
@pytest.mark.parametrize("models", [1, 2, 3, 4, 7])
def test_any_number_of_models_on_any_number_of_threads(models: int, threads: None) -> None:
    numbers = torch.arange(1100) * 17
    contexts, targets = torch.stack([numbers // 27**t % 27 for t in range(3)], dim=1), numbers % 27
    batches = torch.arange(1100).expand(models, 2, -1)
    rates = make_steps(models, 1, steps=2)[1]
    alone = make_runs("mlp", torch.float32, models)
    losses = [
        engine.train_steps(run.parameters, [], contexts, targets, batches[i], rates[i]) for i, run in enumerate(alone)
    ]
    assert _C.last_branch() == "mlp_step/slots/at_once_sparse"
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        runs = make_runs("mlp", torch.float32, models)
        given = arguments(runs)
        together = engine.train_population(
            given.pop("parameters"), [[]] * models, contexts, targets, batches, rates, **given
        )
        assert _C.last_branch() == "mlp_step/slots/at_once_sparse"
        assert_same_bits(bits(alone, [], losses), bits(runs, [], together.unbind()))


def test_contexts_may_be_indexed(threads: None) -> None:
    batches, rates = make_steps(3, 20)
    torch.set_num_threads(2)
    plain, indexed = (make_runs("mlp", torch.float64, 3) for _ in range(2))
    contexts, index = plain[0].contexts.unique(dim=0, return_inverse=True)
    results = []
    for runs, examples, more in ((plain, plain[0].contexts, {}), (indexed, contexts, {"context_index": index})):
        given = arguments(runs)
        losses = engine.train_population(
            given.pop("parameters"), [[]] * 3, examples, plain[0].targets, batches, rates, **given, **more
        )
        results.append(bits(runs, [], losses.unbind()))
    assert_same_bits(*results)


def test_no_steps_are_no_steps() -> None:
    runs = make_runs("mlp", torch.float32, 2)
    before = [parameter.clone() for parameter in bits(runs, [], [])]
    batches, rates = torch.empty(2, 0, 5, dtype=torch.int64), torch.empty(2, 0)
    losses = engine.train_population(
        [run.parameters for run in runs],
        [[], []],
        runs[0].contexts,
        runs[0].targets,
        batches,
        rates,
        [run.options["options"] for run in runs],
    )
    assert losses.shape == (2, 0)
    assert_same_bits(before, bits(runs, [], []))


# What is wrong


def swapped(values: list[Any], place: int, value: Any) -> list[Any]:
    return [*values[:place], value, *values[place + 1 :]]


SGD, ADAMW = OptimizerOptions(), OptimizerOptions(optimizer="adamw")
OTHER = make_run((27, 3, 5, 30), torch.float32).parameters
HALF = [parameter.detach().half() for parameter in make_run(SHAPE, torch.float32).parameters]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"options": lambda o: []}, ValueError, r"^parameters must have one entry for each of the 0 models, got 3$"),
        ({"options": lambda o: swapped(o, 1, "sgd")}, TypeError, r"^options\[1\] must be OptimizerOptions, got str$"),
        ({"options": lambda o: swapped(o, 2, ADAMW)}, ValueError, "^optimizer must be the same for all models, got ad"),
        (
            {"options": lambda o: swapped(o, 1, OptimizerOptions(momentum=0.9))},
            ValueError,
            "^model 1: optimizer_state must have 5 tensors, got 0$",
        ),
        (
            {"options": lambda o: swapped(o, 1, OptimizerOptions(weight_decay=1e-46))},
            ValueError,
            "^model 1: weight_decay must be between .* in float32, got 1e-46$",
        ),
        ({"softcaps": lambda s: [None]}, ValueError, "^softcaps must have one entry for each of the 3 models, got 1$"),
        ({"softcaps": lambda s: [None, -1.0, None]}, ValueError, "^softcap must be positive and finite, or None, got"),
        ({"softcaps": lambda s: [None, None, 1e39]}, ValueError, "^model 2: softcap must be between .* in float32"),
        ({"first_steps": lambda f: [0, 0, -1]}, ValueError, "^model 2: first_step must be at least 0, got -1$"),
        ({"parameters": lambda p: p[:2]}, ValueError, "^parameters must have one entry for each of the 3 models, got"),
        ({"parameters": lambda p: swapped(p, 2, p[2][:4])}, ValueError, "^parameters must be as many tensors for each"),
        (
            {"parameters": lambda p: swapped(p, 2, OTHER)},
            ValueError,
            r"^model 2: embedding must have shape of that of model 0 = \(27, 4\), got \(27, 5\)$",
        ),
        (
            {"parameters": lambda p: swapped(p, 1, [t.double() for t in p[1]])},
            ValueError,
            "^model 1: embedding must have the dtype of model 0, float32, got float64$",
        ),
        ({"parameters": lambda p: [HALF] * 3}, ValueError, "^model 0: embedding must have dtype float32 or float64"),
        (
            {"parameters": lambda p: swapped(p, 2, p[1])},
            ValueError,
            "must not share memory, but tensors of model 1 and model 2 do$",
        ),
        (
            {"batches": lambda b: b[:2]},
            ValueError,
            r"^batch_indices must have shape \(M=3, S=4, B\), got \(2, 4, 20\)$",
        ),
        ({"batches": lambda b: b[0]}, ValueError, r"^batch_indices must have shape \(M=3, S=4, B\), got \(4, 20\)$"),
        (
            {"batches": lambda b: b[..., :0]},
            ValueError,
            r"^batch_indices must have shape \(M=3, S=4, B\), got \(3, 4, 0",
        ),
        ({"batches": lambda b: b.double()}, ValueError, "^batch_indices must have an integer dtype, got float64$"),
        (
            {"batches": lambda b: torch.where(torch.arange(3).view(3, 1, 1) == 2, 400, b)},
            IndexError,
            r"^batch_indices\[2, 0, 0\] = 400 is out of range for 400 examples$",
        ),
        ({"rates": lambda r: r[:2]}, ValueError, r"^learning_rates must have shape \(M=3, S\), got \(2, 4\)$"),
        ({"rates": lambda r: r[0]}, ValueError, r"^learning_rates must have shape \(M=3, S\), got \(4,\)$"),
        (
            {
                "rates": lambda r: r.index_put(
                    (torch.tensor(1), torch.tensor(3)), torch.tensor(1e39, dtype=torch.float64)
                )
            },
            ValueError,
            r"^learning_rates\[1, 3\] must be between .* in float32, got 1e\+39$",
        ),
        ({"contexts": lambda c: c.fill_diagonal_(27)}, IndexError, r"^contexts\[\d+, \d\] = 27 is out of range for 27"),
        ({"targets": lambda t: t - 1}, IndexError, r"^targets\[\d+\] = -1 is out of range for 27 classes$"),
        ({"contexts": lambda c: c[:, :2]}, ValueError, r"^model 0: weight1 must have shape \(H, T\*D\) = \(30, 8\)"),
    ],
)
def test_bad_arguments_change_no_model(change: dict[str, Any], error: type[Exception], message: str) -> None:
    runs = make_runs("mlp", torch.float32, 3)
    batches, rates = make_steps(3, 20)
    batches[:, 0, :3] = torch.arange(3)  # the first examples are read
    given: dict[str, Any] = {"contexts": runs[0].contexts, "targets": runs[0].targets, "batches": batches}
    given |= {"rates": rates, "state": [[]] * 3, "first_steps": [0, 0, 0], **arguments(runs)}
    for name, function in change.items():
        given[name] = function(given[name])
    before = [parameter.clone() for parameter in bits(runs, [], [])]
    places = [given.pop(name) for name in ("parameters", "state", "contexts", "targets", "batches", "rates")]
    with pytest.raises(error, match=message):
        engine.train_population(*places, **given)
    assert_same_bits(before, bits(runs, [], []))


def test_what_is_wrong_with_one_of_many_full_batches_changes_no_model() -> None:
    runs = make_runs("bigram", torch.float32, 3)
    contexts, row_ptr, targets, counts = runs[0].counts()
    before = [parameter.clone() for parameter in bits(runs, [], [])]
    given = arguments(runs)
    parameters, rates = given.pop("parameters"), torch.full((3, 2), 0.1)
    for places, message in (
        ((contexts.zero_(), row_ptr, targets, counts, rates), r"^contexts\[1\] = 0 occurs twice"),
        ((contexts, row_ptr, targets, counts, rates[0]), r"^learning_rates must have shape \(M=3, S\), got \(2,\)$"),
        ((contexts, row_ptr, targets, counts[1:], rates), "^counts must have the shape of targets"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.train_full_population(parameters, [[]] * 3, *places, **given)
    assert_same_bits(before, bits(runs, [], []))


@pytest.mark.parametrize(
    ("op_arguments", "message"),
    [
        ({"options": torch.zeros(0, 7)}, r"^options must have shape \(M, 7\) for at least one model, got \(0, 7\)$"),
        ({"options": torch.zeros(3, 6)}, r"^options must have shape \(M, 7\) for at least one model, got \(3, 6\)$"),
        ({"options": torch.zeros(3, 7, dtype=torch.int64)}, "^options must have dtype float32, .* got int64$"),
        ({"first_steps": torch.zeros(2, dtype=torch.int64)}, r"^first_steps must have shape \(M=3,\), got \(2,\)$"),
        ({"first_steps": torch.zeros(3)}, "^first_steps must have an integer dtype, got float32$"),
        ({"optimizer": 2}, r"^model 0: optimizer must be 0 \(sgd\) or 1 \(adamw\), got 2$"),
        ({"parameters": 14}, "^parameters must be as many tensors for each of M=3 models, got 14$"),
        ({"state": [torch.zeros(1)]}, "^optimizer_state must be as many tensors for each of M=3 models, got 1$"),
    ],
)
def test_the_op_itself_checks_what_python_gives_it(op_arguments: dict[str, Any], message: str) -> None:
    runs = make_runs("mlp", torch.float32, 3)
    batches, rates = make_steps(3, 20)
    flat = [parameter.detach() for parameter in bits(runs, [], [])]
    given: dict[str, Any] = {"options": torch.zeros(3, 7), "first_steps": torch.zeros(3, dtype=torch.int64)}
    given |= {"optimizer": 0, "parameters": len(flat), "state": [], **op_arguments}
    with pytest.raises(ValueError, match=message):
        torch.ops.charlm.train_population(
            flat[: given["parameters"]],
            given["state"],
            runs[0].contexts,
            runs[0].targets,
            None,
            batches,
            rates,
            given["optimizer"],
            given["options"],
            given["first_steps"],
        )


def test_memory_in_common_is_found_wherever_it_is() -> None:
    """Also a state that is another model's parameter, and one piece of memory of which two tensors are views."""
    options = OptimizerOptions(momentum=0.9)
    batches, rates = torch.zeros(2, 1, 3, dtype=torch.int64), torch.full((2, 1), 0.1)
    contexts, targets = torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    memory = torch.zeros(100)
    weights = [memory[:9].view(3, 3), memory[8:17].view(3, 3), memory[20:29].view(3, 3), memory[30:39].view(3, 3)]
    for parameters, state in (
        ([weights[0], weights[1]], [weights[2], weights[3]]),
        ([weights[0], weights[2]], [weights[1], weights[3]]),
        ([weights[0], weights[2]], [weights[3], weights[0]]),
    ):
        with pytest.raises(ValueError, match=r"must not share memory, but tensors of model 0 and model [01] do$"):
            engine.train_population(
                [[p] for p in parameters], [[s] for s in state], contexts, targets, batches, rates, [options] * 2
            )
    assert torch.count_nonzero(memory) == 0
    parameters, states = [[weights[0]], [weights[2]]], [[weights[3]], [torch.zeros(3, 3)]]
    engine.train_population(parameters, states, contexts, targets, batches, rates, [options] * 2)
    assert torch.equal(weights[0], weights[2])
    assert torch.count_nonzero(weights[0]) == 3


def test_tensors_that_share_memory_until_they_are_written_to_are_separate() -> None:
    """Lazy clones, as torch makes them, of the weights that all models start from."""
    run = make_run(SHAPE, torch.float32)
    before = [parameter.detach().clone() for parameter in run.parameters]
    batches, rates = make_steps(2, 20)
    clones = [[torch._lazy_clone(parameter.detach()) for parameter in run.parameters] for _ in range(2)]
    options = [run.options["options"]] * 2
    losses = engine.train_population(clones, [[], []], run.contexts, run.targets, batches, rates, options)
    assert_same_bits(before, [parameter.detach() for parameter in run.parameters])
    for own, own_losses, own_batches, own_rates in zip(clones, losses, batches, rates, strict=True):
        alone = make_run(SHAPE, torch.float32)
        assert torch.equal(own_losses, alone.fused(own_batches, own_rates))
        assert all(torch.equal(one, other) for one, other in zip(own, alone.parameters, strict=True))


def test_a_storage_that_was_freed_is_named() -> None:
    runs = make_runs("mlp", torch.float32, 2)
    batches, rates = make_steps(2, 20)
    given = arguments(runs)
    parameters = given.pop("parameters")
    assert isinstance(parameters[1][3], nn.Parameter)
    parameters[1][3].data.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"^model 1: weight2 has shape .* data is not allocated$"):
        engine.train_population(parameters, [[], []], runs[0].contexts, runs[0].targets, batches, rates, **given)
