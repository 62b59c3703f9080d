"""A GPU as programs use it: graphs, streams, several GPUs, memory that runs out, and calls after an error.

What each op computes is in its own file. Here the same bits must come out in every way of asking for it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    Sample,
    cross_entropy_sample,
    device,
    embedding_linear_sample,
    evaluate,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
    same_bits,
)
from cuda_ways import (
    NoWaiting,
    Results,
    Step,
    Way,
    at_once,
    current_device,
    in_graph,
    on_side_stream,
    out_of_memory,
    plainly,
    tensors_on,
)

from charlm import ops

pytestmark = pytest.mark.cuda

Make = Callable[[int], Sample]


def losses(*shape: int, **options: Any) -> Make:
    return lambda seed: cross_entropy_sample(*shape, dtype=torch.float32, seed=seed, **options)


def output_layers(*shape: int, **options: Any) -> Make:
    return lambda seed: linear_cross_entropy_sample(*shape, dtype=torch.float32, seed=seed, **options)


def log_probs(*shape: int, **options: Any) -> Make:
    return lambda seed: log_probs_sample(*shape, dtype=torch.float32, ids_per_row=3, seed=seed, **options)


def log_probs_of_layers(*shape: int, **options: Any) -> Make:
    return lambda seed: linear_log_probs_sample(*shape, dtype=torch.float32, seed=seed, **options)


def layers(*shape: int, **options: Any) -> Make:
    return lambda seed: embedding_linear_sample(*shape, dtype=torch.float32, seed=seed, **options)


def models(*shape: int, **options: Any) -> Make:
    return lambda seed: mlp_cross_entropy_sample(*shape, dtype=torch.float32, seed=seed, **options)


# Of a seed: every op, every way that it can take, and a mean as well as a loss a row.
SAMPLES: dict[str, Make] = {
    "narrow losses": losses(300, 27, targets="ignored"),
    "narrow losses a row": losses(40, 27, reduction="none", weighted=True),
    "wide losses": losses(5, 600, targets="ignored", label_smoothing=0.1),
    "losses in parts": losses(2, 33000),
    "losses of probabilities": losses(6, 27, targets="probabilities"),
    "an output layer": output_layers(9, 5, 600, targets="ignored", softcap=5.0),
    "an output layer's losses a row": output_layers(9, 5, 27, reduction="none"),
    "chunks": output_layers(2100, 2, 3, targets="ignored"),
    "log-probabilities": log_probs(300, 27, ignored=True),
    "wide log-probabilities": log_probs(5, 600, temperature=0.7, softcap=5.0),
    "log-probabilities of an output layer": log_probs_of_layers(9, 5, 600, ids_per_row=3, ignored=True),
    "chunks of log-probabilities": log_probs_of_layers(2100, 2, 3),
    "a projected table": layers(123),
    "sorted rows": layers(700, 3, 500),
    "gathered rows": layers(5, 3, 400, activation="gelu"),
    "a model in tiles": models(150, targets="ignored"),
    "a model in layers": models(5, 3, 300, 4, 24, reduction="none"),
}
every_sample = pytest.mark.parametrize("make", SAMPLES.values(), ids=SAMPLES)


def assert_same(found: Results, expected: Results) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.isfinite().all(), name
        assert same_bits(found[name], value), name


@every_sample
@pytest.mark.parametrize("way", [on_side_stream, in_graph])
def test_the_same_bits_in_every_way(way: Way, make: Make) -> None:
    step = Step(make(1))
    first = step()
    found = {name: value.clone() for name, value in way(step, make(2)).items()}
    assert_same(found, plainly(step, make(2)))
    assert_same(plainly(step, make(1)), first)


@every_sample
def test_two_streams_at_once(make: Make) -> None:
    steps = Step(make(1)), Step(make(2))
    expected = [step() for step in steps]
    for found, values in zip(at_once(steps), expected, strict=True):
        assert_same(found, values)


@pytest.mark.parametrize(
    "waits",
    [
        lambda losses: losses.sum().item(),
        lambda losses: losses[losses > 0],
        lambda losses: losses.nonzero(),
        lambda losses: bool(losses.sum() > 0),
    ],
    ids=["item", "mask", "nonzero", "condition"],
)
def test_what_waits_for_the_gpu_is_noticed(waits: Callable[[torch.Tensor], object]) -> None:
    """On a GPU CUDA does; this holds what stands in for a graph on the simulator."""
    with NoWaiting(), pytest.raises(RuntimeError, match="waits for the GPU"):
        waits(torch.ones(3, device=device))


@pytest.mark.two_gpus
@every_sample
@pytest.mark.parametrize(("current", "where"), [(0, 1), (1, 0), (1, 1)])
def test_any_gpu_while_any_is_current(current: int, where: int, make: Make) -> None:
    expected = Step(make(1))()
    with tensors_on(where), current_device(current):
        found = Step(make(1))()
    assert_same({name: value.to(device) for name, value in found.items()}, expected)


def on_gpu(large: int, small: int) -> int:
    """Sizes at which the allocator of a GPU asks for memory at every step, where it is a GPU that the test is on."""
    return large if device.type == "cuda" else small


ROWS_OF_CHUNKS, WIDTH = on_gpu(1 << 16, 2100), on_gpu(256, 2)
TAKING_MEMORY: dict[str, Make] = {
    "cross_entropy": losses(on_gpu(1 << 20, 40), 27),
    "cross_entropy of wide rows": losses(on_gpu(1 << 12, 5), on_gpu(5000, 600)),
    "linear_cross_entropy": output_layers(ROWS_OF_CHUNKS, WIDTH, 27),
    "linear_cross_entropy a row": output_layers(ROWS_OF_CHUNKS, WIDTH, 27, reduction="none"),
    "log_probs": log_probs(on_gpu(1 << 20, 40), 27),
    "linear_log_probs": log_probs_of_layers(ROWS_OF_CHUNKS, WIDTH, 27),
    "embedding_linear of a table": layers(on_gpu(1 << 18, 123), 3, 27, 10, on_gpu(200, 9)),
    "embedding_linear of sorted rows": layers(on_gpu(1 << 17, 700), 3, 500, 10, on_gpu(200, 9)),
    "embedding_linear of rows": layers(on_gpu(1 << 14, 5), 3, on_gpu(1 << 16, 400), on_gpu(64, 4), on_gpu(256, 16)),
    "mlp_cross_entropy in tiles": models(on_gpu(1 << 20, 150)),
    "mlp_cross_entropy in layers": models(on_gpu(1 << 16, 5), 3, 300, 4, on_gpu(256, 24)),
}


@pytest.mark.parametrize("make", TAKING_MEMORY.values(), ids=TAKING_MEMORY)
def test_memory_that_runs_out_is_an_error_and_the_next_call_is_right(make: Make) -> None:
    step = Step(make(1))
    expected = step()
    users = step.users()
    errors = out_of_memory(step)
    assert len(errors) >= 2
    for error in errors:
        assert "memory" in str(error)
    del error, errors
    gc.collect()  # what their tracebacks hold
    assert step.users() == users
    assert_same(step(), expected)


@every_sample
def test_a_call_after_one_that_is_refused(make: Make) -> None:
    sample = make(1)
    expected = evaluate(sample)
    name = sample.differentiable[-1]
    wrong = sample.with_arguments(**{name: sample.arguments[name].to(torch.int64)})
    with pytest.raises((TypeError, ValueError, RuntimeError), match=name):
        wrong.call(getattr(ops, sample.op), {})
    assert_same(evaluate(sample), expected)


@pytest.mark.parametrize("bad", [-1, 2**40])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (losses(300, 27), "target"),
        (losses(5, 600), "target"),
        (output_layers(9, 5, 27), "target"),
        (log_probs(300, 27), "ids"),
        (log_probs_of_layers(9, 5, 27), "ids"),
        (layers(123), "ids"),
        (layers(5, 3, 400), "ids"),
        (models(150), "target"),
        (models(5, 3, 300, 4, 24), "ids"),
    ],
)
def test_a_call_after_a_value_out_of_range(make: Make, name: str, bad: int) -> None:
    sample = make(1)
    expected = evaluate(sample)
    values = sample.arguments[name].clone()
    values.view(-1)[1] = bad
    assert evaluate(sample.with_arguments(**{name: values}))["result"].isnan().any()
    assert_same(evaluate(sample), expected)
