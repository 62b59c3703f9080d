"""The CUDA kernels of cross_entropy, in the simulator, against the reference."""

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
    cross_entropy_sample,
    evaluate,
    names_of,
    same_bits,
)
from simulated import Ops
from simulator import Server
from torch import Tensor

SHAPES = (*((rows, classes) for rows in (0, 1, 7) for classes in VOCAB_SIZES), (515, 65))
# Rows on both sides of each change in how a problem is cut: 512 classes (shared memory or registers), a warp and more
# for a row, and 32,768 (several blocks for a row).
EDGE_SHAPES = ((5, 511), (5, 512), (5, 513), (3, 4096), (2, 9001), (1, 32769), (300, 520))


@pytest.fixture(scope="session")
def server(serve: Callable[[str], Server]) -> Server:
    return serve("cross_entropy")


@pytest.fixture
def cuda(server: Server) -> Ops:
    return Ops(server)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + EDGE_SHAPES)
def test_every_shape_in_every_dtype(shape: tuple[int, ...], dtype: torch.dtype, cuda: Ops) -> None:
    check(cross_entropy_sample(*shape, dtype=dtype), cuda)
    check(cross_entropy_sample(*shape, dtype=dtype, targets="ignored", **ALL_LOSS_OPTIONS), cuda)


def test_many_blocks(cuda: Ops) -> None:
    check(cross_entropy_sample(4099, 27, dtype=torch.bfloat16, targets="ignored"), cuda)
    check(cross_entropy_sample(67, 5003, dtype=torch.float32), cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 27), (1, 1), (7, 27), (7, 33), (3, 601), (1, 33001), (515, 65)])
def test_probabilities_in_every_dtype(shape: tuple[int, ...], dtype: torch.dtype, cuda: Ops) -> None:
    check(cross_entropy_sample(*shape, dtype=dtype, targets="probabilities"), cuda)
    check(cross_entropy_sample(*shape, dtype=dtype, targets="probabilities", **ALL_LOSS_OPTIONS), cuda)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=names_of)
def test_every_combination_of_options(options: dict[str, Any], reduction: str, targets: str, cuda: Ops) -> None:
    for dtype, classes in ((torch.float64, 29), (torch.float32, 530)):
        check(cross_entropy_sample(9, classes, dtype=dtype, targets=targets, reduction=reduction, **options), cuda)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(9, 27), (5, 600), (2, 33000), (3, 7, 5)])
def test_gradient_in_the_forward_pass(
    shape: tuple[int, ...], reduction: str, dtype: torch.dtype, server: Server
) -> None:
    cuda = Ops(server, gradient_in_forward=True)
    for options in ({}, ALL_LOSS_OPTIONS):
        check(cross_entropy_sample(*shape, dtype=dtype, targets="ignored", reduction=reduction, **options), cuda)


@pytest.mark.parametrize(
    "shape", [(7,), (1,), (3, 7, 5), (3, 7, 5, 2), (2, 7, 3, 1, 4), (0, 7, 5), (3, 7, 0), (2, 90, 3)]
)
@pytest.mark.parametrize("targets", TARGETS)
def test_any_trailing_dimensions(targets: str, shape: tuple[int, ...], cuda: Ops) -> None:
    for reduction in REDUCTIONS:
        check(cross_entropy_sample(*shape, targets=targets, reduction=reduction, **ALL_LOSS_OPTIONS), cuda)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("classes", [29, 530])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), id="transposed"),
        pytest.param(lambda x: torch.cat([x, x], 1)[:, 3 : 3 + x.shape[1]], id="class slice"),
        pytest.param(lambda x: torch.stack([x, x], -1)[..., 1], id="stride two"),
        pytest.param(lambda x: torch.cat([x, x])[::2], id="row step"),
        pytest.param(lambda x: torch.cat([x.flatten(), x.flatten()])[5 : 5 + x.numel()].view(x.shape), id="unaligned"),
        pytest.param(lambda x: x[:1].expand_as(x), id="expanded rows"),
        pytest.param(lambda x: x[:, :1].expand_as(x), id="expanded classes"),
    ],
)
def test_any_strides(view: Callable[[Tensor], Tensor], classes: int, targets: str, cuda: Ops) -> None:
    sample = cross_entropy_sample(6, classes, dtype=torch.bfloat16, targets=targets, weighted=True)
    logits, target = sample.arguments["input"], sample.arguments["target"]
    check(sample.with_arguments(input=view(logits)), cuda)
    if targets == "probabilities":
        check(sample.with_arguments(target=view(target)), cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 27), (3, 601)])
def test_large_logits(shape: tuple[int, int], dtype: torch.dtype, cuda: Ops) -> None:
    logits = torch.full(shape, -1e4, dtype=dtype)
    logits[0] = 1e4
    logits[1, 3] = 1e4
    logits[2, ::2] = 1e4
    sample = cross_entropy_sample(*shape, dtype=dtype, reduction="none")
    check(sample.with_arguments(input=logits), cuda)
    check(sample.with_arguments(input=logits, label_smoothing=0.1), cuda)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@pytest.mark.parametrize("classes", [37, 601])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_minus_infinity_logits(
    label_smoothing: float, classes: int, targets: str, dtype: torch.dtype, cuda: Ops
) -> None:
    sample = cross_entropy_sample(
        5, classes, dtype=dtype, targets=targets, label_smoothing=label_smoothing, reduction="none"
    )
    logits = sample.arguments["input"].clone()
    logits[0, 20:] = -torch.inf
    logits[1, : classes - 1] = -torch.inf
    logits[2, 0] = -torch.inf
    logits[3] = -torch.inf
    sample = sample.with_arguments(input=logits)
    if targets == "indices":
        sample = sample.with_arguments(target=torch.tensor([3, classes - 1, 0, 1, 2]))
    check(sample, cuda)
    check(sample.with_arguments(softcap=3.0), cuda)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("classes", [37, 601])
def test_nan_and_infinity_stay_in_their_row(classes: int, bad: float, cuda: Ops) -> None:
    sample = cross_entropy_sample(5, classes, dtype=torch.float32, reduction="none")
    logits = sample.arguments["input"].clone()
    logits[2, 17] = bad
    values = evaluate(sample.with_arguments(input=logits), cuda)
    assert values["result"].isnan().tolist() == [False, False, True, False, False]
    assert values["gradient of input"].isnan().any(dim=1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("classes", "bad"), [(27, -1), (27, 27), (27, -(2**40)), (600, 600), (600, 2**40), (33000, -1)]
)
def test_a_target_out_of_range_makes_its_row_nan(classes: int, bad: int, cuda: Ops) -> None:
    sample = cross_entropy_sample(5, classes, dtype=torch.float32, reduction="none", weighted=True)
    target = sample.arguments["target"].clone()
    target[2] = bad
    sample = sample.with_arguments(target=target)
    values = evaluate(sample, cuda)
    assert values["result"].isnan().tolist() == [False, False, True, False, False]
    assert values["gradient of input"][2].isnan().all()

    # The other rows share a mean among themselves.
    mean = evaluate(sample.with_arguments(reduction="mean"), cuda)
    assert mean["result"].isnan()
    ignored = sample.with_arguments(reduction="mean", target=target.index_fill(0, torch.tensor([2]), -100))
    expected = evaluate(ignored, cuda)["gradient of input"]
    assert same_bits(mean["gradient of input"][[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_rows_ignored(reduction: str, cuda: Ops) -> None:
    for classes in (27, 600):
        sample = cross_entropy_sample(6, classes, reduction=reduction, **ALL_LOSS_OPTIONS)
        check(sample.with_arguments(target=torch.full((6,), -100)), cuda)


def test_more_than_two_to_the_eighteenth_classes(cuda: Ops) -> None:
    check(cross_entropy_sample(1, 2**18 + 3, dtype=torch.bfloat16), cuda)


@pytest.mark.parametrize("shape", [(300, 27), (5, 600), (2, 33000), (40, 7, 5)])
def test_the_same_bits_in_any_order_of_threads(shape: tuple[int, ...], cuda: Ops) -> None:
    sample = cross_entropy_sample(*shape, dtype=torch.float32, targets="ignored", **ALL_LOSS_OPTIONS)
    first = evaluate(sample, cuda)
    cuda.server.seed(1)
    for name, value in evaluate(sample, cuda).items():
        assert same_bits(value, first[name]), name
