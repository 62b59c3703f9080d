"""mlp_cross_entropy: the whole model and its loss in one op, in all shapes, dtypes and with all options."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from cases import (
    DTYPES,
    INTEGER_DTYPES,
    REDUCTIONS,
    check,
    device,
    evaluate,
    mlp_cross_entropy_sample,
    names_of,
    same_bits,
)

from charlm import _C, ops

# (N, T, V, D, H): widths around the vector registers, tiles of rows and groups of them, blocks of classes.
SHAPES = (
    (1, 1, 1, 1, 1),
    (7, 16, 5, 3, 17),
    (36, 2, 28, 5, 33),
    (300, 3, 27, 10, 200),
    (1300, 3, 27, 4, 31),
    (60, 2, 513, 9, 40),
    (270, 2, 1025, 5, 19),
    (5, 3, 5003, 4, 53),
)
OPTIONS: list[dict[str, Any]] = [
    {"targets": targets, "softcap": softcap} for targets in ("indices", "ignored") for softcap in (None, 3.0)
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_in_every_dtype(shape: tuple[int, ...], dtype: torch.dtype, instruction_set: str) -> None:
    check(mlp_cross_entropy_sample(*shape, dtype=dtype, targets="ignored"))


@pytest.mark.parametrize("options", OPTIONS, ids=names_of)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_option_and_reduction(
    dtype: torch.dtype, reduction: str, options: dict[str, Any], instruction_set: str
) -> None:
    for shape in ((50, 3, 27, 4, 12), (5, 2, 5003, 4, 53)):
        check(mlp_cross_entropy_sample(*shape, dtype=dtype, reduction=reduction, **options))


@pytest.mark.cpu
def test_many_parameters_and_few_rows_take_one_layer_after_the_other() -> None:
    """By shape alone; copying the parameters would take longer."""
    parameters = 1024 * (300 + 3 * 4)  # of the matrices
    for rows, in_layers in ((5, True), (parameters // 1024 - 1, True), (parameters // 1024, False)):
        for reduction in REDUCTIONS:
            sample = mlp_cross_entropy_sample(rows, 3, 300, 4, 1024, dtype=torch.float32, reduction=reduction)
            sample.call(ops.mlp_cross_entropy, {})
            assert (_C.last_branch() == "mlp_cross_entropy_forward/in_layers") == in_layers
    mlp_cross_entropy_sample(5, 3, 200, 4, 1024).call(ops.mlp_cross_entropy, {})
    assert _C.last_branch() == "mlp_step/one_tile/loss"


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 26, 27, 255, -(2**40)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_any_ignore_index(reduction: str, ignore_index: int) -> None:
    check(mlp_cross_entropy_sample(9, targets="ignored", ignore_index=ignore_index, reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_rows_ignored(reduction: str) -> None:
    for hidden_dim in (9, 10_000):
        sample = mlp_cross_entropy_sample(9, hidden_dim=hidden_dim, reduction=reduction)
        sample = sample.with_arguments(target=torch.full((9,), -100, device=device))
        values = evaluate(sample)
        result = values.pop("result")
        assert result.isnan() if reduction == "mean" else torch.equal(result, torch.zeros_like(result))
        for value in values.values():
            assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("leading", [(), (1,), (4, 9), (2, 3, 6), (2, 0)], ids=str)
def test_any_leading_dimensions(leading: tuple[int, ...], reduction: str) -> None:
    check(mlp_cross_entropy_sample(leading, targets="ignored", reduction=reduction))
    check(mlp_cross_entropy_sample(leading, 2, 5003, 4, 53, targets="ignored", reduction=reduction))


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
def test_any_integer_dtype(dtype: torch.dtype) -> None:
    sample = mlp_cross_entropy_sample((3, 4), targets="ignored", ignore_index=26)
    expected = evaluate(sample)
    tensors = {name: sample.arguments[name].to(dtype) for name in ("ids", "target")}
    for name, value in evaluate(sample.with_arguments(**tensors)).items():
        assert same_bits(value, expected[name]), name


def test_255_of_unsigned_bytes_is_ignored_and_minus_100_is_not_there() -> None:
    sample = mlp_cross_entropy_sample(9, targets="ignored", ignore_index=255)
    expected = evaluate(sample)
    target = sample.arguments["target"].to(torch.uint8)
    for name, value in evaluate(sample.with_arguments(target=target)).items():
        assert same_bits(value, expected[name]), name
    classes = target.where(target != 255, 156)  # the byte of -100
    if not cases.on_cuda:
        with pytest.raises(IndexError, match=r"target\[1\] = 156 is out of range for 27 classes"):
            sample.with_arguments(target=classes, ignore_index=-100).call(ops.mlp_cross_entropy, {})


def test_strided_ids_and_parameters() -> None:
    sample = mlp_cross_entropy_sample(9, targets="ignored")
    tokens = cases.integers(27, (11,))
    strided = {name: sample.arguments[name].t().contiguous().t() for name in ("embedding", "weight1", "weight2")}
    check(sample.with_arguments(ids=tokens.unfold(0, 3, 1), **strided))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(reduction: str, softcap: float | None) -> None:
    sample = mlp_cross_entropy_sample(6, 2, 5, 3, 4, targets="ignored", reduction=reduction, softcap=softcap)
    leaves = sample.leaves()
    assert torch.autograd.gradcheck(
        lambda *values: sample.call(ops.mlp_cross_entropy, dict(zip(leaves, values, strict=True))),
        tuple(leaves.values()),
        fast_mode=cases.on_cuda,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_biases_may_be_missing(reduction: str) -> None:
    for shape in ((20, 2, 27, 4, 9), (5, 2, 5003, 4, 53)):
        check(mlp_cross_entropy_sample(*shape, bias=False, reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_examples(reduction: str) -> None:
    check(mlp_cross_entropy_sample(0, reduction=reduction))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ids", lambda t: t.double(), "ids must have an integer dtype, got float64"),
        (
            "target",
            lambda t: t[1:],
            r"target must have the shape of ids without its last dimension, \(9,\), got \(8,\)",
        ),
        ("weight1", lambda t: t[:, 1:], r"weight1 must have shape \(H, T\*D\) = \(9, 8\), got \(9, 7\)"),
        ("weight2", lambda t: t.float(), "weight2 must have the dtype of embedding, float64, got float32"),
    ],
)
def test_bad_arguments(name: str, change: Any, message: str) -> None:
    sample = mlp_cross_entropy_sample(9, 2)
    with pytest.raises(ValueError, match=message):
        sample.with_arguments(**{name: change(sample.arguments[name])}).call(ops.mlp_cross_entropy, {})
