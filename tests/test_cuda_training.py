"""Training in blocks of a GPU: the curve, parameters and state of eager PyTorch, whatever the options and shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import device
from engine_runs import OPTIMIZERS, Run, assert_agrees, make_batches, make_bigram, make_run
from torch import Tensor

from charlm import _C, engine
from charlm.optimizers import OptimizerOptions

pytestmark = pytest.mark.cuda

# (V, T, D, H, B): sizes around tiles of 4, one class, one position; a part of a tile of 32 examples, one, several.
SHAPES = [
    (27, 3, 10, 40, 32),
    (27, 3, 4, 17, 90),
    (1, 1, 1, 1, 1),
    (2, 2, 2, 3, 5),
    (5, 16, 3, 32, 33),
    (33, 2, 9, 8, 31),
    (130, 1, 5, 12, 64),
]
SMALL = (11, 3, 3, 9, 40)


def on_device(run: Run) -> Run:
    model, contexts, targets = (part.to(device) for part in (run.model, run.contexts, run.targets))
    return replace(run, model=model, contexts=contexts, targets=targets)


def pair(make: Callable[..., Run], *arguments: Any, **options: Any) -> tuple[Run, Run]:
    """The same run twice, in float64: for eager PyTorch, and on the device."""
    return make(*arguments, torch.float64, **options), on_device(make(*arguments, torch.float64, **options))


def assert_steps_agree(runs: tuple[Run, Run], batches: Tensor, rates: Tensor) -> None:
    eager, fused = runs
    losses = fused.fused(batches, rates)
    assert _C.last_branch() in ("train_steps/in_block", "train_steps/in_cluster")
    assert losses.device.type == device.type
    assert_agrees(eager, on_cpu(fused), (eager.eager(batches, rates), losses.cpu()), 1e-10)


def on_cpu(run: Run) -> Run:
    return replace(run, model=run.model.to("cpu"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_of_every_shape(shape: tuple[int, ...], reorder: Callable[[int], None]) -> None:
    batches, rates = make_batches(3, shape[-1])
    for seed, options in enumerate(({}, OPTIMIZERS["adamw"])):
        reorder(seed)
        assert_steps_agree(pair(make_run, shape, **options), batches, rates)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_every_option(optimizer: str, clip: float | None, direct: bool, softcap: float | None) -> None:
    options = {**OPTIMIZERS[optimizer], "max_grad_norm": clip, "softcap": softcap, "direct": direct}
    assert_steps_agree(pair(make_run, SMALL, **options), *make_batches(5, 40))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("vocab_size", [1, 2, 27, 90])
def test_bigrams(optimizer: str, clip: float | None, vocab_size: int) -> None:
    options = {**OPTIMIZERS[optimizer], "max_grad_norm": clip}
    assert_steps_agree(pair(make_bigram, vocab_size, **options), *make_batches(4, 70))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", ["mlp", "direct", "bigram"])
def test_full_batches(optimizer: str, make: str) -> None:
    options = OPTIMIZERS[optimizer]
    if make == "bigram":
        eager, fused = pair(make_bigram, 27, **options)
    else:
        eager, fused = pair(make_run, SMALL, direct=make == "direct", **options)
    rates = torch.linspace(0.1, 0.02, 4, dtype=torch.float64)
    counts = [part.to(device) for part in eager.counts()]
    losses = engine.train_full_steps(fused.parameters, fused.new_state(), *counts, rates, **fused.options)
    assert _C.last_branch() in ("train_steps/in_block", "train_steps/in_cluster")
    everything = torch.arange(400).expand(4, 400)
    assert_agrees(eager, on_cpu(fused), (eager.eager(everything, rates), losses.cpu()), 1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_calls_continue_each_other_bit_for_bit(optimizer: str) -> None:
    batches, rates = make_batches(9, 40)
    once, twice = (on_device(make_run(SMALL, torch.float32, **OPTIMIZERS[optimizer])) for _ in range(2))
    losses, state = once.fused(batches, rates), twice.new_state()
    first = twice.fused(batches[:4], rates[:4], state)
    rest = twice.fused(batches[4:], rates[4:], state, first_step=4)
    assert torch.equal(losses, torch.cat([first, rest]))
    for one, other in zip(once.parameters, twice.parameters, strict=True):
        assert torch.equal(one, other)


def test_more_steps_than_a_launch_makes() -> None:
    batches, rates = make_batches(515, 2)
    eager, fused = pair(make_run, (2, 1, 1, 1, 2))
    assert_steps_agree((eager, fused), batches, rates)


@pytest.mark.parametrize("shape", [(27, 3, 10, 20, 32), SMALL], ids=str)
def test_the_order_of_threads_changes_nothing(shape: tuple[int, ...], reorder: Callable[[int], None]) -> None:
    batches, rates = make_batches(3, shape[-1])
    results = []
    for seed in range(3):
        reorder(seed)
        run = on_device(make_run(shape, torch.float32, max_grad_norm=0.1, **OPTIMIZERS["momentum"]))
        state = run.new_state()
        results.append([run.fused(batches, rates, state), *run.parameters, *state])
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert torch.equal(one, other)


def test_float32_is_as_good_as_eager() -> None:
    batches, rates = make_batches(50, 40)
    truth = make_run(SMALL, torch.float64).eager(batches, rates)
    eager = make_run(SMALL, torch.float32).eager(batches, rates)
    fused = on_device(make_run(SMALL, torch.float32)).fused(batches, rates).cpu()
    allowed = 4 * (eager - truth).abs().max() + 1e-7
    assert (fused - truth).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_of_any_dtype_and_stride(dtype: torch.dtype) -> None:
    batches, rates = make_batches(3, 40)
    plain, other = (on_device(make_run(SMALL, torch.float64)) for _ in range(2))
    tokens = torch.randint(11, (402,), generator=torch.Generator().manual_seed(6)).to(device)
    plain.contexts, other.contexts = tokens.unfold(0, 3, 1).contiguous(), tokens.to(dtype).unfold(0, 3, 1)
    other.targets = plain.targets.to(dtype)
    assert torch.equal(plain.fused(batches, rates), other.fused(batches.int(), rates))


def test_contexts_by_their_index() -> None:
    batches, rates = make_batches(3, 40)
    plain, indexed = (on_device(make_run(SMALL, torch.float64)) for _ in range(2))
    indexed.contexts, index = plain.contexts.unique(dim=0, return_inverse=True)
    losses = indexed.fused(batches, rates, context_index=index)
    assert torch.equal(plain.fused(batches, rates), losses)


POPULATION: list[dict[str, Any]] = [
    {"learning_rate": 0.1, "weight_decay": 0.0},
    {"learning_rate": 0.02, "weight_decay": 0.1, "max_grad_norm": 0.1, "first_step": 3},
    {"learning_rate": 0.3, "weight_decay": 0.01, "betas": (0.8, 0.95), "softcap": 3.0},
]


@pytest.mark.parametrize("full_batch", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_models_together_have_the_bits_of_each_alone(optimizer: str, full_batch: bool) -> None:
    batches = torch.stack([torch.randint(400, (4, 40), generator=torch.Generator().manual_seed(s)) for s in range(3)])
    alone, together, all_rates, first_steps, softcaps = [], [], [], [], []
    expected = []
    for number, given in enumerate(POPULATION):
        options = {name: value for name, value in given.items() if name not in ("learning_rate", "first_step")}
        if optimizer == "sgd":
            options.pop("betas", None)
        runs = [on_device(make_run(SMALL, torch.float32, optimizer=optimizer, **options)) for _ in range(2)]
        rates = torch.full((4,), given["learning_rate"], dtype=torch.float64)
        first_step = given.get("first_step", 0)
        if full_batch:
            counts = [part.to(device) for part in make_run(SMALL, torch.float32).counts()]
            losses = engine.train_full_steps(
                runs[0].parameters, runs[0].new_state(), *counts, rates, first_step=first_step, **runs[0].options
            )
        else:
            losses = runs[0].fused(batches[number], rates, first_step=first_step)
        expected.append(losses)
        alone.append(runs[0])
        together.append(runs[1])
        all_rates.append(rates)
        first_steps.append(first_step)
        softcaps.append(options.get("softcap"))
    parameters = [parameter for run in together for parameter in run.parameters]
    state = [tensor for run in together for tensor in run.new_state()]
    rows = torch.tensor([_row(run.options["options"], run.options["softcap"]) for run in together], dtype=torch.float64)
    kind = {"sgd": 0, "adamw": 1}[optimizer]
    first = together[0]
    with torch.no_grad():
        if full_batch:
            losses = torch.ops.charlm.train_full_population.default(
                [p.detach() for p in parameters],
                state,
                *counts,
                torch.stack(all_rates),
                kind,
                rows,
                torch.tensor(first_steps),
            )
        else:
            losses = torch.ops.charlm.train_population.default(
                [p.detach() for p in parameters],
                state,
                first.contexts,
                first.targets,
                None,
                batches,
                torch.stack(all_rates),
                kind,
                rows,
                torch.tensor(first_steps),
            )
    assert torch.equal(losses, torch.stack(expected))
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one.parameters, other.parameters, strict=True):
            assert torch.equal(a, b)


def _row(options: OptimizerOptions, softcap: float | None) -> list[float]:
    """As `train_population` takes the options of a model."""
    clip = options.max_grad_norm
    return [options.momentum, *options.betas, options.eps, options.weight_decay, clip or 0.0, softcap or 0.0]


@pytest.mark.parametrize("make", [lambda: make_run(SMALL, torch.float32), lambda: make_bigram(11, torch.float32)])
@pytest.mark.parametrize("what", ["token", "target", "example", "context"])
def test_what_is_out_of_range_makes_the_loss_nan(make: Callable[[], Run], what: str) -> None:
    batches, rates = make_batches(2, 40)
    run = on_device(make())
    index = torch.arange(400, device=device)
    example = int(batches[1, 7])
    if what == "token":
        run.contexts = run.contexts.clone()
        run.contexts[example, -1] = 11
    elif what == "target":
        run.targets = run.targets.clone()
        run.targets[example] = -1
    elif what == "example":
        batches = batches.clone()
        batches[1, 7] = 400
    else:
        index[example] = 400
    batches[0] = (batches[0] == example).long() + batches[0] * (batches[0] != example)
    losses = run.fused(batches, rates, context_index=index).cpu()
    assert losses.isnan().tolist() == [False, True]


@pytest.mark.parametrize("what", ["token", "target", "row_ptr"])
def test_what_is_out_of_range_of_a_full_batch(what: str) -> None:
    run = on_device(make_run(SMALL, torch.float32))
    contexts, row_ptr, targets, counts = (part.clone().to(device) for part in run_counts())
    if what == "token":
        contexts[5, 1] = -2
    elif what == "target":
        targets[3] = 11
    else:
        row_ptr[3] = 1 << 40
    rates = torch.full((1,), 0.1, dtype=torch.float64)
    losses = engine.train_full_steps(
        run.parameters, run.new_state(), contexts, row_ptr, targets, counts, rates, **run.options
    )
    assert losses.isnan().item() == (what != "row_ptr")


def run_counts() -> tuple[Tensor, ...]:
    return make_run(SMALL, torch.float32).counts()


def test_a_model_that_does_not_fit() -> None:
    run = on_device(make_run((300, 2, 17, 250, 4), torch.float32))
    before = [parameter.clone() for parameter in run.parameters]
    with pytest.raises(ValueError, match=r"must fit into the shared memory of .*, but V=300, T=2, D=17, H=250 do not"):
        run.fused(*make_batches(2, 4))
    for parameter, old in zip(run.parameters, before, strict=True):
        assert torch.equal(parameter, old)


@pytest.mark.parametrize(
    ("shape", "float64", "fits"),
    [
        ((27, 3, 10, 200, False), False, True),
        ((27, 3, 10, 200, True), False, True),
        ((27, 3, 48, 512, False), False, False),
        ((27, 1, 0, 0, False), True, True),
        ((300, 1, 0, 0, False), False, False),
        ((1 << 40, 1 << 40, 1 << 40, 1 << 40, False), False, False),
    ],
)
def test_what_fits_into_a_block(shape: tuple[int, int, int, int, bool], float64: bool, fits: bool) -> None:
    assert _C.trains_in_one_launch(0, *shape, float64) is fits


def test_a_full_batch_without_entries() -> None:
    run = on_device(make_run(SMALL, torch.float32))
    contexts, row_ptr, targets, counts = (part.to(device) for part in run_counts())
    rates = torch.full((1,), 0.1, dtype=torch.float64)
    with pytest.raises(ValueError, match="counts must have a positive sum, got 0"):
        engine.train_full_steps(run.parameters, [], contexts, 0 * row_ptr, targets[:0], counts[:0], rates)
