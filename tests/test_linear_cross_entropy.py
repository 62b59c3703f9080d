"""linear_cross_entropy against the reference: every combination of options, any leading dimensions, bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import (
    ALL_LOSS_OPTIONS,
    DTYPES,
    INTEGER_DTYPES,
    LINEAR_CROSS_ENTROPY_SHAPES,
    LOSS_OPTIONS,
    REDUCTIONS,
    TARGETS,
    check,
    class_targets,
    device,
    evaluate,
    linear_cross_entropy_sample,
    names_of,
    normal,
    same_bits,
    token_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from peak_memory import peak_allocation
from torch import Tensor

from charlm import ops
from charlm.ops import reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LINEAR_CROSS_ENTROPY_SHAPES)
def test_every_shape_in_every_dtype(shape: tuple[int, int, int], dtype: torch.dtype, instruction_set: str) -> None:
    check(linear_cross_entropy_sample(*shape, dtype=dtype))
    check(linear_cross_entropy_sample(*shape, dtype=dtype, targets="ignored", **ALL_LOSS_OPTIONS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5, 27), (7, 5, 1), (7, 5, 33), (5, 9, 5003), (515, 16, 65)])
def test_probabilities_in_every_dtype(shape: tuple[int, int, int], dtype: torch.dtype, instruction_set: str) -> None:
    check(linear_cross_entropy_sample(*shape, dtype=dtype, targets="probabilities"))
    check(linear_cross_entropy_sample(*shape, dtype=dtype, targets="probabilities", **ALL_LOSS_OPTIONS))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=names_of)
def test_every_combination_of_options(options: dict[str, Any], bias: bool, reduction: str, targets: str) -> None:
    for dtype in (torch.float64, torch.float32):
        check(
            linear_cross_entropy_sample(
                9, 5, 29, dtype=dtype, targets=targets, bias=bias, reduction=reduction, **options
            )
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("differentiable", [("input",), ("input", "linear_weight")])
def test_a_large_weight_in_half_precision(differentiable: tuple[str, ...], dtype: torch.dtype) -> None:
    sample = linear_cross_entropy_sample(3, 520, 5003, dtype=dtype, reduction="none")
    check(replace(sample, differentiable=differentiable))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_a_weight_too_long_to_convert_a_block_at_a_time(dtype: torch.dtype) -> None:
    check(linear_cross_entropy_sample(2, 16384, 300, dtype=dtype))


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 5), (2, 0, 3)])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_any_leading_dimensions(reduction: str, targets: str, leading: tuple[int, ...]) -> None:
    check(linear_cross_entropy_sample(leading, targets=targets, reduction=reduction))
    check(linear_cross_entropy_sample(leading, targets=targets, reduction=reduction, **ALL_LOSS_OPTIONS))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1), id="transposed"),
        pytest.param(lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]], id="column slice"),
        pytest.param(lambda x: torch.stack([x, x], -1)[..., 1], id="stride two"),
        pytest.param(lambda x: torch.cat([x, x])[::2], id="row step"),
        pytest.param(lambda x: x[:1].expand_as(x), id="expanded rows"),
        pytest.param(lambda x: x[..., :1].expand_as(x), id="expanded columns"),
    ],
)
def test_any_strides(view: Callable[[Tensor], Tensor], dtype: torch.dtype, targets: str) -> None:
    for leading in ((6,), (4, 3)):
        sample = linear_cross_entropy_sample(leading, 5, 29, dtype=dtype, targets=targets, weighted=True)
        for name in ("input", "linear_weight", "target"):
            check(sample.with_arguments(**{name: view(sample.arguments[name])}))
        vectors = {name: torch.stack([sample.arguments[name]] * 2, 1)[:, 0] for name in ("linear_bias", "weight")}
        check(sample.with_arguments(**vectors))
        check(sample.with_arguments(linear_bias=sample.arguments["linear_bias"][:1].expand(29)))


@pytest.mark.parametrize("integer", INTEGER_DTYPES)
def test_every_integer_dtype(integer: torch.dtype) -> None:
    sample = linear_cross_entropy_sample(9, targets="ignored", weighted=True, ignore_index=3)
    expected = evaluate(sample)
    actual = evaluate(sample.with_arguments(target=sample.arguments["target"].to(integer)))
    for name, value in expected.items():
        assert same_bits(actual[name], value), name


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 26, 27, 255])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_any_ignore_index(reduction: str, ignore_index: int) -> None:
    check(linear_cross_entropy_sample(9, targets="ignored", ignore_index=ignore_index, reduction=reduction))


@pytest.mark.parametrize("targets", TARGETS)
def test_plain_options_are_those_of_torch(targets: str) -> None:
    sample = linear_cross_entropy_sample(9, targets=targets, weighted=True)
    plain = {name: value for name, value in sample.arguments.items() if name != "linear_bias"}
    torch.testing.assert_close(ops.linear_cross_entropy(**plain), torchs(**plain))
    smoothed = {**sample.arguments, "label_smoothing": 0.2, "reduction": "sum"}
    torch.testing.assert_close(ops.linear_cross_entropy(**smoothed), torchs(**smoothed))


def torchs(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None, **options: Any
) -> Tensor:
    """F.linear_cross_entropy, or what it stands for where torch is older."""
    if hasattr(F, "linear_cross_entropy"):
        loss: Tensor = F.linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias, **options)
        return loss
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [27, 5003])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_logits_of_ten_thousand(reduction: str, vocab_size: int, dtype: torch.dtype, instruction_set: str) -> None:
    sample = linear_cross_entropy_sample(7, 5, vocab_size, dtype=dtype, reduction=reduction)
    check(sample.with_arguments(input=1e4 * sample.arguments["input"]))


def test_minus_infinity_in_the_bias_removes_a_class() -> None:
    sample = linear_cross_entropy_sample(7, 5, 27, reduction="none")
    bias = sample.arguments["linear_bias"].clone()
    bias[20:] = -torch.inf
    sample = sample.with_arguments(linear_bias=bias, target=torch.tensor([0, 1, 2, 3, 19, 20, 26], device=device))
    check(sample)
    assert ops.linear_cross_entropy(**sample.arguments).isinf().tolist() == [False] * 5 + [True] * 2


def test_nan_stays_in_its_row() -> None:
    sample = linear_cross_entropy_sample(7, 5, 37, reduction="none")
    features = sample.arguments["input"].clone()
    features[2, 1] = math.nan
    values = evaluate(sample.with_arguments(input=features))
    assert values["result"].isnan().tolist() == [row == 2 for row in range(7)]
    assert values["gradient of input"].isnan().any(dim=1).tolist() == [row == 2 for row in range(7)]
    check(sample.with_arguments(input=features))


@pytest.mark.parametrize("options", [{}, ALL_LOSS_OPTIONS], ids=names_of)
def test_all_rows_ignored(options: dict[str, Any]) -> None:
    for reduction in REDUCTIONS:
        sample = linear_cross_entropy_sample(6, reduction=reduction, **options)
        sample = sample.with_arguments(target=torch.full((6,), -100, device=device))
        result = evaluate(sample)["result"]
        assert result.isnan() if reduction == "mean" else (result == 0.0).all()
        check(sample)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=names_of)
def test_gradcheck(options: dict[str, Any], bias: bool, reduction: str, targets: str) -> None:
    sample = linear_cross_entropy_sample(3, 2, 4, targets=targets, bias=bias, reduction=reduction, **options)
    leaves = sample.leaves()

    def op(*values: Tensor) -> Tensor:
        return sample.call(ops.linear_cross_entropy, dict(zip(leaves, values, strict=True)))

    # In one direction on a GPU: the slow way is the same there, and a simulator takes minutes.
    assert torch.autograd.gradcheck(op, tuple(leaves.values()), fast_mode=cases.on_cuda)


def test_value_by_hand() -> None:
    features, weight = torch.tensor([[1.0, 2.0]], device=device), torch.eye(2, device=device)
    target, bias = torch.tensor([0], device=device), torch.tensor([1.0, 0.0], device=device)
    result = ops.linear_cross_entropy(features, weight, target, linear_bias=bias)
    assert result.item() == pytest.approx(math.log(2.0))


def test_result_owns_its_memory() -> None:
    features, weight, target = normal(4, 3), normal(5, 3), torch.tensor([0, 1, 2, 3], device=device)
    result = ops.linear_cross_entropy(features, weight, target, reduction="none")
    expected = result.clone()
    features.zero_()
    weight.zero_()
    assert same_bits(result, expected)


def test_the_logits_are_never_in_memory() -> None:
    """Forward and backward allocate the gradients, a few numbers per row, and a small part of the logits' memory."""
    rows, vocab_size, part = (2**15, 33, 1 / 16) if cases.on_cuda else (2048, 5003, 1 / 20)
    sample = linear_cross_entropy_sample(rows, 8, vocab_size, dtype=torch.float32)
    leaves = sample.leaves()
    peak = peak_allocation(lambda: sample.call(ops.linear_cross_entropy, leaves).backward())
    gradients = sum(leaf.numel() for leaf in leaves.values())
    assert peak < 4 * (gradients + 8 * rows + part * rows * vocab_size)


@settings(max_examples=100)
@given(data=st.data())
def test_any_shape_dtype_layout_and_options(data: st.DataObject) -> None:
    sample = linear_cross_entropy_sample(
        data.draw(st.integers(0, 40), "rows"),
        data.draw(st.integers(1, 40), "in_features"),
        data.draw(st.integers(1, 70), "V"),
        dtype=data.draw(st.sampled_from(DTYPES), "dtype"),
        targets=data.draw(st.sampled_from(TARGETS), "targets"),
        weighted=data.draw(st.booleans(), "weighted"),
        bias=data.draw(st.booleans(), "bias"),
        seed=data.draw(st.integers(0, 1000), "seed"),
        reduction=data.draw(st.sampled_from(REDUCTIONS), "reduction"),
        label_smoothing=data.draw(st.sampled_from([0.0, 0.1, 1.0]), "label_smoothing"),
        softcap=data.draw(st.sampled_from([None, 0.5, 30.0]), "softcap"),
        z_loss=data.draw(st.sampled_from([0.0, 1e-3]), "z_loss"),
    )
    for name in data.draw(st.sets(st.sampled_from(["input", "linear_weight"])), "transposed"):
        sample = sample.with_arguments(**{name: sample.arguments[name].t().contiguous().t()})
    check(sample)


# The signature of torch.nn.functional.linear_cross_entropy.


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("positions", [(2,), (2, 3), (1,), (0,)])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("options", [{}, ALL_LOSS_OPTIONS], ids=names_of)
def test_a_layer_for_each_position(
    options: dict[str, Any], targets: str, positions: tuple[int, ...], reduction: str
) -> None:
    """linear_weight (C, d1, ..., D): values and gradients, one position after the other."""
    options = {**options, "reduction": reduction}
    weighted, token_weighted = options.pop("weighted", False), options.pop("token_weighted", False)
    classes, features, rows = 7, 4, 5
    input, layer = normal(rows, features), normal(classes, *positions, features, seed=1)
    bias, class_weight = normal(classes, *positions, seed=2), normal(classes, seed=3).abs() if weighted else None
    target = class_targets(targets, (rows, classes, *positions), 1, dtype=torch.float64, seed=4)
    keywords = {"weight": class_weight, **options}
    row_weights = token_weights((rows, *positions), torch.float64, seed=5) if token_weighted else None
    results = []
    for namespace in (ops, reference):
        leaves = [tensor.detach().requires_grad_() for tensor in (input, layer, bias)]
        loss = namespace.linear_cross_entropy(
            *leaves[:2], target, linear_bias=leaves[2], token_weights=row_weights, **keywords
        )
        gradients = torch.autograd.grad(loss, leaves, torch.ones_like(loss))
        results.append([loss.detach(), *gradients])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14, equal_nan=True)
    if reduction != "none":
        return
    flat = target.flatten(2 if target.is_floating_point() else 1)
    for k, (own, own_bias) in enumerate(zip(layer.flatten(1, -2).unbind(1), bias.flatten(1).unbind(1), strict=True)):
        own_weights = None if row_weights is None else row_weights.flatten(1)[:, k]
        loss = ops.linear_cross_entropy(
            input, own, flat[..., k], linear_bias=own_bias, token_weights=own_weights, **keywords
        )
        torch.testing.assert_close(results[0][0].flatten(1)[:, k], loss)


def test_ignore_index_none_is_pytorchs_default() -> None:
    for targets in ("ignored", "probabilities"):
        sample = linear_cross_entropy_sample(9, targets=targets)
        results = [evaluate(sample.with_arguments(ignore_index=None), namespace) for namespace in (ops, reference)]
        plain = evaluate(sample)
        for name, value in plain.items():
            assert same_bits(results[0][name], value), name
            torch.testing.assert_close(results[1][name], value)


@pytest.mark.parametrize("ignore_index", [-100, 0, 3])
def test_class_probabilities_are_not_ignored(ignore_index: int) -> None:
    sample = linear_cross_entropy_sample(9, targets="probabilities", ignore_index=ignore_index)
    for namespace in (ops, reference):
        with pytest.raises(RuntimeError, match="ignore_index must be None where target has class probabilities"):
            sample.call(namespace.linear_cross_entropy, {})


def test_options_of_pytorchs_chunks_change_nothing() -> None:
    sample = linear_cross_entropy_sample(9)
    expected = sample.call(ops.linear_cross_entropy, {})
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        for options in (
            torch.nn.LinearCrossEntropyOptions(),
            torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2, acc_policy="accurate"),
        ):
            assert same_bits(sample.call(ops.linear_cross_entropy, {"options": options}), expected)  # type: ignore[dict-item]
    for wrong in ({}, "fast", 4):
        for namespace in (ops, reference):
            with pytest.raises(TypeError, match=r"options must be a torch\.nn\.LinearCrossEntropyOptions or None"):
                sample.with_arguments(options=wrong).call(namespace.linear_cross_entropy, {})
