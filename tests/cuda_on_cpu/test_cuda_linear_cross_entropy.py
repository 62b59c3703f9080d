"""linear_cross_entropy on CUDA, in the simulator, against the reference: chunks, and what is added up over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    ALL_LOSS_OPTIONS,
    DTYPES,
    LOSS_OPTIONS,
    REDUCTIONS,
    TARGETS,
    VOCAB_SIZES,
    check,
    evaluate,
    linear_cross_entropy_sample,
    names_of,
    same_bits,
)
from simulated import Ops
from simulator import Server

# Those of tests/cases.py but for the large ones: products are plain loops here.
SHAPES = (
    *((7, 5, vocab_size) for vocab_size in VOCAB_SIZES if vocab_size < 100),
    *((rows, 33, 27) for rows in (0, 1, 300)),
    (5, 0, 27),
    (5, 1, 33),
    (5, 9, 1200),
)


@pytest.fixture(scope="session")
def server(serve: Callable[[str], Server]) -> Server:
    return serve("linear_cross_entropy")


@pytest.fixture
def cuda(server: Server) -> Ops:
    return Ops(server)


@pytest.fixture
def chunked(server: Server) -> Ops:
    """Several chunks and a shorter last one of the few rows that tests have."""
    return Ops(server, gradient_in_forward=True, chunk_rows=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_dtype(shape: tuple[int, int, int], dtype: torch.dtype, server: Server) -> None:
    check(linear_cross_entropy_sample(*shape, dtype=dtype), Ops(server, gradient_in_forward=True))
    sample = linear_cross_entropy_sample(*shape, dtype=dtype, targets="ignored", **ALL_LOSS_OPTIONS)
    check(sample, Ops(server, chunk_rows=300 if shape[0] > 300 else 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5, 27), (7, 5, 1), (7, 5, 33), (5, 9, 700)])
def test_probabilities_in_every_dtype(shape: tuple[int, int, int], dtype: torch.dtype, chunked: Ops) -> None:
    check(linear_cross_entropy_sample(*shape, dtype=dtype, targets="probabilities"), chunked)
    check(linear_cross_entropy_sample(*shape, dtype=dtype, targets="probabilities", **ALL_LOSS_OPTIONS), chunked)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=names_of)
def test_every_combination_of_options(options: dict[str, Any], reduction: str, targets: str, chunked: Ops) -> None:
    bias = reduction != "sum"
    sample = linear_cross_entropy_sample(9, 5, 29, targets=targets, bias=bias, reduction=reduction, **options)
    check(sample, chunked)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [3, 4, 5, 8, 13])
def test_chunks_of_any_length(rows: int, reduction: str, dtype: torch.dtype, server: Server) -> None:
    sample = linear_cross_entropy_sample(rows, 6, 30, dtype=dtype, targets="ignored", reduction=reduction)
    for in_forward in (True, False):
        check(sample, Ops(server, gradient_in_forward=in_forward, chunk_rows=4))


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 5), (2, 0, 3)])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_any_leading_dimensions(reduction: str, targets: str, leading: tuple[int, ...], chunked: Ops) -> None:
    check(linear_cross_entropy_sample(leading, targets=targets, reduction=reduction), chunked)


def test_only_the_gradients_that_are_wanted(chunked: Ops) -> None:
    for targets in TARGETS:
        sample = linear_cross_entropy_sample(9, targets=targets, reduction="sum")
        everything = evaluate(sample, chunked)
        for name in sample.differentiable:
            leaf = sample.arguments[name].clone().requires_grad_()
            result = chunked.linear_cross_entropy(**{**sample.arguments, name: leaf})
            upstream = torch.randn((), generator=torch.Generator().manual_seed(99), dtype=torch.float64)
            (gradient,) = torch.autograd.grad(result, leaf, upstream)
            torch.testing.assert_close(gradient, everything[f"gradient of {name}"])


@pytest.mark.parametrize("bad", [-1, 27, 2**40])
def test_a_target_out_of_range_makes_its_row_nan(bad: int, chunked: Ops) -> None:
    sample = linear_cross_entropy_sample(9, 5, 27, dtype=torch.float32, reduction="none")
    target = sample.arguments["target"].clone()
    target[5] = bad
    values = evaluate(sample.with_arguments(target=target), chunked)
    expected = evaluate(sample, chunked)
    row = [n == 5 for n in range(9)]
    assert values["result"].isnan().tolist() == row
    assert values["gradient of input"].isnan().all(1).tolist() == row
    others = torch.arange(9) != 5
    for name in ("result", "gradient of input"):
        assert same_bits(values[name][others], expected[name][others])


def test_a_weight_gradient_of_many_chunks_is_added_up_in_float32(server: Server) -> None:
    # 300 equal rows: in bfloat16 the sum would stop growing at 256 times the first.
    sample = linear_cross_entropy_sample(1, 2, 3, dtype=torch.bfloat16, reduction="sum")
    rows = {name: sample.arguments[name].expand(300, *sample.arguments[name].shape[1:]) for name in ("input", "target")}
    check(sample.with_arguments(**rows), Ops(server, gradient_in_forward=True, chunk_rows=1))


def test_the_same_bits_in_any_order_of_threads(chunked: Ops) -> None:
    sample = linear_cross_entropy_sample(9, 5, 600, dtype=torch.float32, targets="ignored", **ALL_LOSS_OPTIONS)
    first = evaluate(sample, chunked)
    chunked.server.seed(1)
    for name, value in evaluate(sample, chunked).items():
        assert same_bits(value, first[name]), name
