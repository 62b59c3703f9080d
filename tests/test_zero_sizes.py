"""Sizes of zero: no classes, no tokens, no dimensions, no hidden units, no examples; torch's edge results."""

from __future__ import annotations

from itertools import product
from typing import Any

import cases
import pytest
import torch
from cases import (
    DTYPES,
    REDUCTIONS,
    check,
    cross_entropy_sample,
    device,
    embedding_linear_sample,
    linear_cross_entropy_sample,
    mlp_cross_entropy_sample,
    normal,
)

from charlm import ops

OPTIONS: list[dict[str, Any]] = [
    {},
    {"weighted": True},
    {"label_smoothing": 0.3},
    {"token_weighted": True},
    {"token_weighted": True, "weighted": True, "label_smoothing": 0.1, "softcap": 5.0, "z_loss": 0.01},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 0), (0, 0), (0, 5), (0,), (5, 0, 3), (5, 3, 0), (0, 3, 2), (2, 0, 0)], ids=str)
def test_probabilities_of_no_classes_or_no_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for options, reduction in product(OPTIONS, REDUCTIONS):
        check(cross_entropy_sample(*shape, targets="probabilities", dtype=dtype, reduction=reduction, **options))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_classes_and_all_rows_ignored(reduction: str) -> None:
    sample = cross_entropy_sample(5, 1, reduction=reduction).with_arguments(
        input=normal(5, 0), target=torch.full((5,), -100, device=device)
    )
    check(sample)
    check(sample.with_arguments(token_weights=torch.full((5,), torch.nan, device=device)))
    for label_smoothing, z_loss in ((0.1, 0.0), (0.0, 0.1)):
        loss = sample.with_arguments(label_smoothing=label_smoothing, z_loss=z_loss).call(ops.cross_entropy, {})
        expected = {"none": [0.0] * 5, "sum": 0.0, "mean": torch.nan}[reduction]
        torch.testing.assert_close(loss, torch.tensor(expected).to(loss), equal_nan=True)


def test_a_class_index_where_there_are_no_classes() -> None:
    target = torch.zeros(5, dtype=torch.int64, device=device)
    weight = torch.zeros(0, 3, device=device)
    calls = (
        lambda: ops.cross_entropy(torch.zeros(5, 0, device=device), target, reduction="sum"),
        lambda: ops.linear_cross_entropy(torch.zeros(5, 3, device=device), weight, target, reduction="sum"),
    )
    for call in calls:
        if cases.on_cuda:
            assert call().isnan()
        else:
            with pytest.raises(IndexError, match=r"target\[0\] = 0 is out of range for 0 classes"):
                call()


@pytest.mark.parametrize("targets", ["ignored", "probabilities"])
@pytest.mark.parametrize(("rows", "features", "classes"), [(0, 3, 4), (5, 0, 4), (0, 0, 4), ((0, 2), 3, 4)])
def test_an_output_layer_without_rows_or_features(rows: Any, features: int, classes: int, targets: str) -> None:
    for options, reduction in product(OPTIONS, REDUCTIONS):
        check(linear_cross_entropy_sample(rows, features, classes, targets=targets, reduction=reduction, **options))


@pytest.mark.parametrize(("rows", "features"), [(5, 3), (0, 3), (5, 0), (0, 0)])
def test_an_output_layer_without_classes(rows: int, features: int) -> None:
    for options, reduction in product(OPTIONS, REDUCTIONS):
        check(linear_cross_entropy_sample(rows, features, 0, targets="probabilities", reduction=reduction, **options))


SIZES = [sizes for sizes in product((0, 5), (0, 2), (0, 4), (0, 3)) if 0 in sizes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_a_layer_on_embeddings_with_sizes_of_zero(
    activation: str, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    rows, context_length, dim, hidden_dim = sizes
    for bias in (True, False):
        check(
            embedding_linear_sample(
                rows, context_length, 6, dim, hidden_dim, bias=bias, activation=activation, dtype=dtype
            )
        )


@pytest.mark.parametrize(("rows", "context_length"), [(0, 2), (5, 0), (0, 0)])
def test_a_layer_on_no_embeddings(rows: int, context_length: int) -> None:
    sample = embedding_linear_sample(rows, context_length, 1)
    check(sample.with_arguments(embedding=normal(0, 4)))


def test_contexts_of_no_tokens_in_any_shape() -> None:
    for leading in ((), (2, 3), (2, 0)):
        check(embedding_linear_sample(leading, 0))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_whole_model_with_sizes_of_zero(sizes: tuple[int, int, int, int], reduction: str) -> None:
    rows, context_length, dim, hidden_dim = sizes
    for dtype, softcap in ((torch.float64, None), (torch.float32, 2.0), (torch.float16, None)):
        sample = mlp_cross_entropy_sample(
            rows, context_length, 6, dim, hidden_dim, dtype=dtype, reduction=reduction, softcap=softcap
        )
        check(sample)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_whole_model_of_no_tokens(reduction: str) -> None:
    sample = mlp_cross_entropy_sample(0, 3, 1, reduction=reduction)
    check(sample.with_arguments(embedding=normal(0, 4), weight2=normal(0, 9), bias2=normal(0)))
    with pytest.raises(ValueError, match=r"embedding must have at least one row, got shape \(0, 4\)"):
        mlp_cross_entropy_sample(2, 3, 1).with_arguments(
            embedding=normal(0, 4), weight2=normal(0, 9), bias2=normal(0)
        ).call(ops.mlp_cross_entropy, {})
