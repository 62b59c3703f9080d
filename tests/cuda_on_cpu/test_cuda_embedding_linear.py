"""The CUDA kernels of embedding_linear, in the simulator, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    ACTIVATIONS,
    DTYPES,
    EMBEDDING_LINEAR_SHAPES,
    INTEGER_DTYPES,
    check,
    embedding_linear_sample,
    evaluate,
    normal,
    same_bits,
)
from simulated import Ops
from simulator import Server
from torch import Tensor

# The table is projected, and its gradient fits into shared memory or is sorted into rows; rows are gathered.
PROJECTED: dict[str, Any] = {"rows": 123, "vocab_size": 27}
SORTED: dict[str, Any] = {"rows": 700, "vocab_size": 500}
GATHERED: dict[str, Any] = {"rows": 5, "vocab_size": 400}
WAYS = [PROJECTED, SORTED, GATHERED]

# Several blocks of rows, several columns of blocks, rows that vectors of 16 bytes fit or do not, long and short runs.
EDGE_SHAPES = (
    (300, 3, 27, 10, 40),
    (260, 2, 27, 8, 64),
    (9, 2, 40, 16, 24),
    (700, 3, 200, 4, 24),
    (300, 2, 299, 3, 40),
)


@pytest.fixture(scope="session")
def server(serve: Callable[[str], Server]) -> Server:
    return serve("embedding_linear")


@pytest.fixture
def cuda(server: Server) -> Ops:
    return Ops(server)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", EMBEDDING_LINEAR_SHAPES + EDGE_SHAPES)
def test_every_shape_in_every_dtype(shape: tuple[int, ...], dtype: torch.dtype, cuda: Ops) -> None:
    check(embedding_linear_sample(*shape, dtype=dtype), cuda)


@pytest.mark.parametrize("sizes", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, bias: bool, dtype: torch.dtype, sizes: dict[str, Any], cuda: Ops) -> None:
    check(embedding_linear_sample(**sizes, hidden_dim=16, dtype=dtype, bias=bias, activation=activation), cuda)


@pytest.mark.parametrize(("sizes", "projects"), [(PROJECTED, 1), (SORTED, 1), (GATHERED, 0)])
def test_the_way_follows_from_the_shape(sizes: dict[str, Any], projects: int, cuda: Ops) -> None:
    check(embedding_linear_sample(**sizes), cuda)
    assert cuda.projects.item() == projects


@pytest.mark.parametrize("leading", [(), (0,), (1,), (2, 3), (2, 0, 3), (2, 1, 5, 3)])
def test_any_leading_dimensions(leading: tuple[int, ...], cuda: Ops) -> None:
    check(embedding_linear_sample(leading), cuda)


@pytest.mark.parametrize("integer", INTEGER_DTYPES)
@pytest.mark.parametrize("sizes", [PROJECTED, {**GATHERED, "vocab_size": 127}])
def test_every_integer_dtype(integer: torch.dtype, sizes: dict[str, Any], cuda: Ops) -> None:
    sample = embedding_linear_sample(**sizes)
    expected = evaluate(sample, cuda)
    actual = evaluate(sample.with_arguments(ids=sample.arguments["ids"].to(integer)), cuda)
    for name, value in expected.items():
        assert same_bits(actual[name], value), name


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.t().contiguous().t(), id="transposed"),
        pytest.param(lambda x: torch.stack([x, x], -1)[..., 1], id="stride two"),
        pytest.param(lambda x: x.flatten().unfold(0, 3, 1), id="windows"),
        pytest.param(lambda x: x[:1].expand(9, 3), id="expanded rows"),
        pytest.param(lambda x: x[:, :1].expand(-1, 3), id="expanded positions"),
        pytest.param(lambda x: x.unflatten(0, (3, 41)).transpose(0, 1), id="rows without one stride"),
    ],
)
def test_ids_with_any_strides(view: Callable[[Tensor], Tensor], cuda: Ops) -> None:
    sample = embedding_linear_sample(**PROJECTED)
    check(sample.with_arguments(ids=view(sample.arguments["ids"])), cuda)


@pytest.mark.parametrize("sizes", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_anywhere_in_memory(dtype: torch.dtype, sizes: dict[str, Any], cuda: Ops) -> None:
    sample = embedding_linear_sample(**sizes, embedding_dim=8, hidden_dim=16, dtype=dtype)
    for name in ("embedding", "weight", "bias"):
        values = sample.arguments[name]
        moved = torch.cat([values.flatten(), values.flatten()])[3 : 3 + values.numel()].view(values.shape)
        check(sample.with_arguments(**{name: moved}), cuda)
        check(sample.with_arguments(**{name: torch.stack([values, values], -1)[..., 0]}), cuda)


@pytest.mark.parametrize("sizes", WAYS)
def test_one_token_repeated_everywhere(sizes: dict[str, Any], cuda: Ops) -> None:
    sample = embedding_linear_sample(**sizes)
    ids = sample.arguments["ids"]
    check(sample.with_arguments(ids=torch.full_like(ids, 2)), cuda)
    half = ids.clone()
    half[: len(ids) // 2] = 2
    check(sample.with_arguments(ids=half), cuda)


@pytest.mark.parametrize("sizes", WAYS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_reaches_the_contexts_that_hold_its_token_and_no_others(
    activation: str, sizes: dict[str, Any], cuda: Ops
) -> None:
    sample = embedding_linear_sample(**sizes, activation=activation)
    embedding = sample.arguments["embedding"].clone()
    embedding[sample.arguments["ids"][1, 1]] = torch.nan
    result = cuda.embedding_linear(**{**sample.arguments, "embedding": embedding})
    holds = (sample.arguments["ids"] == sample.arguments["ids"][1, 1]).any(1)
    assert torch.equal(result.isnan().all(1), holds)
    assert torch.equal(result.isnan().any(1), holds)


@pytest.mark.parametrize("bad", ["vocab_size", -(2**63)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", WAYS)
def test_an_id_out_of_range_makes_its_row_nan(
    sizes: dict[str, Any], activation: str, bad: int | str, cuda: Ops
) -> None:
    sample = embedding_linear_sample(**sizes, dtype=torch.float32, activation=activation)
    ids = sample.arguments["ids"].clone()
    ids[2, 1] = sizes["vocab_size"] if isinstance(bad, str) else bad
    others = torch.arange(len(ids)) != 2
    leaves = sample.leaves()
    result = cuda.embedding_linear(**{**sample.arguments, **leaves, "ids": ids})
    expected = evaluate(sample, cuda)["result"]
    assert result[2].isnan().all()
    assert same_bits(result[others].detach(), expected[others])

    # As if the row was not there: its own gradient, which is NaN in a model, reaches nothing.
    upstream = normal(*result.shape, dtype=torch.float32)
    upstream[2] = torch.nan
    gradients = torch.autograd.grad(result, list(leaves.values()), upstream)
    short = sample.with_arguments(ids=ids[others]).leaves()
    rest = cuda.embedding_linear(**{**sample.arguments, **short, "ids": ids[others]})
    for actual, truth in zip(gradients, torch.autograd.grad(rest, list(short.values()), upstream[others]), strict=True):
        torch.testing.assert_close(actual, truth)


def test_only_the_gradients_that_are_wanted(cuda: Ops) -> None:
    for sizes in WAYS:
        sample = embedding_linear_sample(**sizes)
        everything = evaluate(sample, cuda)
        for name in sample.differentiable:
            leaf = sample.arguments[name].clone().requires_grad_()
            result = cuda.embedding_linear(**{**sample.arguments, name: leaf})
            (gradient,) = torch.autograd.grad(result, leaf, normal(*result.shape, seed=99))
            assert same_bits(gradient, everything[f"gradient of {name}"]), name


@pytest.mark.parametrize("sizes", WAYS)
def test_the_same_bits_in_any_order_of_threads(sizes: dict[str, Any], cuda: Ops) -> None:
    sample = embedding_linear_sample(**sizes, dtype=torch.float32)
    first = evaluate(sample, cuda)
    cuda.server.seed(1)
    for name, value in evaluate(sample, cuda).items():
        assert same_bits(value, first[name]), name
