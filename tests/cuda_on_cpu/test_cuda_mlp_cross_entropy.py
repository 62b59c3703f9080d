"""mlp_cross_entropy on CUDA, in the simulator, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import DTYPES, REDUCTIONS, check, evaluate, mlp_cross_entropy_sample, same_bits
from simulated import Ops
from simulator import Server

# (N, T, V, D, H): vocabularies around the widths of vectors, rows and hidden units beyond one block of each; models
# whose dP fits into shared memory, models whose dP does not, and too large ones.
SHAPES = (
    (1, 1, 1, 1, 1),
    (7, 3, 27, 4, 9),
    (65, 3, 27, 10, 40),
    (33, 8, 28, 3, 33),
    (150, 2, 65, 5, 16),
    (5, 3, 300, 4, 24),
    (70, 1, 33, 2, 70),
    (700, 4, 27, 3, 130),
    (40, 8, 27, 3, 300),
    (35, 3, 65, 4, 220),
)


@pytest.fixture(scope="session")
def server(serve: Callable[[str], Server]) -> Server:
    return serve("mlp_cross_entropy")


@pytest.fixture
def cuda(server: Server) -> Ops:
    return Ops(server)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_dtype(shape: tuple[int, ...], dtype: torch.dtype, cuda: Ops) -> None:
    check(mlp_cross_entropy_sample(*shape, dtype=dtype), cuda)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_model_is_computed_as_it_is_stored(shape: tuple[int, ...], server: Server) -> None:
    check(mlp_cross_entropy_sample(*shape, dtype=torch.bfloat16), Ops(server, large_model=True))


@pytest.mark.parametrize("targets", ["indices", "ignored"])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_reduction(
    dtype: torch.dtype, reduction: str, softcap: float | None, targets: str, server: Server
) -> None:
    for classes, chunk_rows in ((27, 0), (80, 0), (80, 4)):  # in tiles; one layer after the other, the second in chunks
        sample = mlp_cross_entropy_sample(
            9, 3, classes, dtype=dtype, targets=targets, reduction=reduction, softcap=softcap
        )
        check(sample, Ops(server, chunk_rows=chunk_rows))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("missing", [("bias1",), ("bias2",), ("bias1", "bias2")])
def test_biases_may_be_missing(missing: tuple[str, ...], reduction: str, cuda: Ops) -> None:
    sample = mlp_cross_entropy_sample(9, reduction=reduction).with_arguments(**dict.fromkeys(missing))
    check(replace(sample, differentiable=tuple(n for n in sample.differentiable if n not in missing)), cuda)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_examples(reduction: str, cuda: Ops) -> None:
    values = evaluate(mlp_cross_entropy_sample(0, reduction=reduction), cuda)
    assert values["result"].isnan().all() if reduction == "mean" else values["result"].sum() == 0
    assert all((value == 0).all() for name, value in values.items() if name != "result")


def test_any_leading_dimensions_and_integers(cuda: Ops) -> None:
    sample = mlp_cross_entropy_sample(12, reduction="none")
    ids, target = sample.arguments["ids"], sample.arguments["target"]
    for leading in ((12,), (3, 4), (2, 1, 6)):
        for dtype in (torch.int64, torch.uint8, torch.int32):
            shaped = {"ids": ids.to(dtype).view(*leading, 3), "target": target.to(dtype).view(leading)}
            check(sample.with_arguments(**shaped), cuda)


@pytest.mark.parametrize("name", ["ids", "target"])
@pytest.mark.parametrize("bad", [-1, -99, 27, 2**40])
def test_a_value_out_of_range_makes_the_loss_of_its_row_nan(bad: int, name: str, cuda: Ops) -> None:
    sample = mlp_cross_entropy_sample(9, dtype=torch.float32, reduction="none")
    values = sample.arguments[name].clone()
    values[5] = bad
    losses = evaluate(sample.with_arguments(**{name: values}), cuda)["result"]
    expected = evaluate(sample, cuda)["result"]
    assert losses.isnan().tolist() == [n == 5 for n in range(9)]
    assert same_bits(losses[:5], expected[:5])
    assert evaluate(sample.with_arguments(**{name: values, "reduction": "mean"}), cuda)["result"].isnan()


def test_the_same_bits_in_any_order_of_threads(cuda: Ops) -> None:
    sample = mlp_cross_entropy_sample(150, dtype=torch.float32)
    first = evaluate(sample, cuda)
    cuda.server.seed(1)
    for name, value in evaluate(sample, cuda).items():
        assert same_bits(value, first[name]), name
