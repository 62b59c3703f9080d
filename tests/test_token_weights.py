"""Weights of rows: factors of the row losses and of every gradient, in any dtype and with any strides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import (
    ALL_LOSS_OPTIONS,
    DTYPES,
    REDUCTIONS,
    TARGETS,
    Sample,
    by_ops_alone,
    check,
    cross_entropy_sample,
    device,
    evaluate,
    linear_cross_entropy_sample,
    names_of,
    normal,
    same_bits,
)
from torch import Tensor

from charlm import _C, ops
from charlm.ops import _transforms, reference

SAMPLES: dict[str, Callable[..., Sample]] = {
    "cross_entropy": lambda **options: cross_entropy_sample(9, 29, token_weighted=True, **options),
    "linear_cross_entropy": lambda **options: linear_cross_entropy_sample(9, 5, 29, token_weighted=True, **options),
}
every_op = pytest.mark.parametrize("op", SAMPLES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
every_target = pytest.mark.parametrize("targets", TARGETS)
some_options = pytest.mark.parametrize("options", [{}, {"weighted": True}, ALL_LOSS_OPTIONS], ids=names_of)


def make(op: str, **options: Any) -> Sample:
    return SAMPLES[op](**{name: value for name, value in options.items() if name != "token_weighted"})


def with_their_gradient(sample: Sample) -> Sample:
    return replace(sample, differentiable=(*sample.differentiable, "token_weights"))


def by_hand(sample: Sample, leaves: dict[str, Tensor]) -> Tensor:
    """From the row losses of PyTorch."""
    arguments = {**sample.arguments, **leaves}
    logits, target, weight = arguments["input"], arguments["target"], arguments["weight"]
    if sample.op == "linear_cross_entropy":
        logits = F.linear(logits, arguments["linear_weight"], arguments["linear_bias"])
    losses = F.cross_entropy(logits, target, weight, reduction="none") * arguments["token_weights"]
    if arguments["reduction"] == "none":
        return losses
    if arguments["reduction"] == "sum":
        return losses.sum()
    counted = arguments["token_weights"]
    if not target.is_floating_point():
        kept = target != -100
        class_weights = torch.ones_like(losses) if weight is None else weight[target.where(kept, 0)]
        counted = (counted * class_weights)[kept]
    return losses.sum() / counted.sum()


@every_op
@every_target
@every_reduction
@pytest.mark.parametrize("weighted", [False, True])
def test_they_are_factors_of_the_losses_of_torch(weighted: bool, reduction: str, targets: str, op: str) -> None:
    sample = make(op, targets=targets, reduction=reduction, weighted=weighted)
    for given in (sample, with_their_gradient(sample)):
        leaves = given.leaves()
        found, expected = given.call(getattr(ops, op), leaves), by_hand(given, leaves)
        torch.testing.assert_close(found, expected)
        upstream = normal(*expected.shape, seed=9)
        gradients = [torch.autograd.grad(loss, list(leaves.values()), upstream) for loss in (found, expected)]
        torch.testing.assert_close(*gradients)


@every_op
@every_reduction
@some_options
@every_dtype
def test_those_of_ignored_rows_may_be_anything(
    dtype: torch.dtype, options: dict[str, Any], reduction: str, op: str
) -> None:
    sample = make(op, dtype=dtype, targets="ignored", reduction=reduction, **options)
    expected = evaluate(sample)
    ignored = sample.arguments["target"] == -100
    for value in (torch.nan, torch.inf, -torch.inf):
        changed = sample.with_arguments(token_weights=sample.arguments["token_weights"].masked_fill(ignored, value))
        for name, tensor in evaluate(changed).items():
            assert same_bits(tensor, expected[name]), name
        check(changed)
        of_weights = evaluate(with_their_gradient(changed))["gradient of token_weights"]
        assert torch.count_nonzero(of_weights[ignored]) == 0
        assert of_weights.isfinite().all()


@every_op
@every_target
@every_dtype
def test_their_dtype_changes_no_other(dtype: torch.dtype, targets: str, op: str) -> None:
    """They are converted to what is computed in: more digits are kept than the logits have."""
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    for given in DTYPES:
        sample = make(op, dtype=dtype, targets=targets)
        weights = sample.to(torch.float64).arguments["token_weights"].to(given)
        found = evaluate(sample.with_arguments(token_weights=weights))
        expected = evaluate(sample.with_arguments(token_weights=weights.to(computed)))
        for name, value in expected.items():
            assert value.dtype == dtype
            assert same_bits(found[name], value), name
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype != torch.float64):
            mixed = sample.call(getattr(ops, op), {"token_weights": weights})
            plain = sample.call(getattr(ops, op), {"token_weights": weights.to(computed)})
        assert same_bits(mixed, plain)
        leaf = weights.requires_grad_()
        sample.call(getattr(ops, op), {"token_weights": leaf}).backward()
        assert leaf.grad is not None
        assert leaf.grad.dtype == given


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1), id="transposed"),
        pytest.param(lambda x: torch.stack([x, x], -1)[..., 1], id="stride two"),
        pytest.param(lambda x: torch.cat([x, x])[::2], id="row step"),
        pytest.param(lambda x: x[:1].expand_as(x), id="expanded"),
        pytest.param(lambda x: x.flatten()[:1].view([1] * x.ndim).expand_as(x), id="one number"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_any_strides(dtype: torch.dtype, view: Callable[[Tensor], Tensor]) -> None:
    for sample in (
        cross_entropy_sample(6, 29, dtype=dtype, token_weighted=True),
        cross_entropy_sample(4, 7, 3, dtype=dtype, token_weighted=True, targets="probabilities"),
        linear_cross_entropy_sample((4, 3), dtype=dtype, token_weighted=True, reduction="sum"),
    ):
        check(sample.with_arguments(token_weights=view(sample.arguments["token_weights"])))


@every_op
@every_target
@every_dtype
def test_weights_of_zero_leave_nothing_to_divide_by(dtype: torch.dtype, targets: str, op: str) -> None:
    for reduction in REDUCTIONS:
        sample = make(op, dtype=dtype, targets=targets, reduction=reduction)
        sample = sample.with_arguments(token_weights=torch.zeros_like(sample.arguments["token_weights"]))
        found = evaluate(sample)
        if reduction == "mean":
            assert found["result"].isnan()
        else:
            assert all(torch.count_nonzero(value) == 0 for value in found.values())
        check(sample)


@every_op
def test_weights_of_zero_and_one_are_a_mask(op: str) -> None:
    sample = make(op, dtype=torch.float32)
    target = sample.arguments["target"]
    mask = torch.arange(len(target), device=device) % 3 != 0
    masked = evaluate(sample.with_arguments(token_weights=mask.float()))
    ignored = evaluate(sample.with_arguments(token_weights=None, target=target.masked_fill(~mask, -100)))
    for name, value in ignored.items():
        torch.testing.assert_close(masked[name], value, rtol=1e-6, atol=1e-7)


@every_op
@every_target
@every_reduction
@some_options
def test_gradcheck(options: dict[str, Any], reduction: str, targets: str, op: str) -> None:
    """Of the weights, with all that their gradient goes together with."""
    arguments = {"targets": targets, "reduction": reduction, **options, "token_weighted": True}
    sample = with_their_gradient(
        cross_entropy_sample(4, 3, scale=1.0, **arguments)
        if op == "cross_entropy"
        else linear_cross_entropy_sample(3, 2, 4, **arguments)
    )
    leaves = sample.leaves()

    def function(*values: Tensor) -> Tensor:
        return sample.call(getattr(ops, op), dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=cases.on_cuda)


@every_op
def test_kernels_serve_weights_whose_gradient_nobody_wants(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the reference ran")

    sample = make(op)
    expected = sample.call(getattr(reference, op), {})
    monkeypatch.setattr(_transforms, "by_reference", refuse)
    torch.testing.assert_close(sample.call(getattr(ops, op), sample.leaves()).detach(), expected)
    leaves = with_their_gradient(sample).leaves()
    with torch.no_grad():
        torch.testing.assert_close(sample.call(getattr(ops, op), leaves), expected)
    with pytest.raises(AssertionError, match="the reference ran"):
        sample.call(getattr(ops, op), leaves)


@pytest.mark.cpu
@every_op
def test_a_small_call_with_weights_goes_through_the_dispatcher(op: str) -> None:
    """Direct calls know no weights, nor does their backward."""
    way = {"cross_entropy": "cross_entropy_forward/op", "linear_cross_entropy": "linear_cross_entropy_forward/chunks"}
    for dtype, reduction in product(DTYPES, REDUCTIONS):
        sample = make(op, dtype=dtype, reduction=reduction)
        sample.call(getattr(ops, op), {})
        assert _C.last_branch() == way[op]
        found = evaluate(sample)
        with by_ops_alone():
            for name, value in evaluate(sample).items():
                assert same_bits(found[name], value), name
