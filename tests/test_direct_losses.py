"""Every form of a small loss that goes past the dispatcher: values, gradients, and the way that each took."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, Sample, check, cross_entropy_sample, integers, linear_cross_entropy_sample, normal
from torch import Tensor

from charlm import _C, ops

pytestmark = pytest.mark.cpu

Make = Callable[[torch.dtype], Sample]


def cross_entropy(*shape: int, **options: Any) -> Make:
    return lambda dtype: cross_entropy_sample(*shape, dtype=dtype, **options)


def changed(make: Make, **changes: Callable[[Tensor], Tensor]) -> Make:
    """The same sample with some arguments passed through functions."""

    def sample(dtype: torch.dtype) -> Sample:
        made = make(dtype)
        return made.with_arguments(**{name: change(made.arguments[name]) for name, change in changes.items()})

    return sample


def apart(tensor: Tensor) -> Tensor:
    """The same numbers, as the last position of rows of three has them."""
    return torch.stack([-tensor, tensor + 1, tensor], 1)[:, -1]


def by_columns(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


FORMS: dict[str, Make] = {
    "rows": cross_entropy(9, 11),
    "one row": cross_entropy(1, 27),
    "one class": cross_entropy(9, 1),
    "more rows than a tile": cross_entropy(150, 27),
    "more classes than are narrow": cross_entropy(9, 70),
    "one dimension": cross_entropy(11),
    "one dimension, (1,) target": changed(cross_entropy(11), target=lambda t: t.reshape(1)),
    "positions": cross_entropy(3, 11, 5),
    "one position": cross_entropy(3, 11, 1),
    "large logits": cross_entropy(33, 11, scale=40.0),
    "ignored rows": cross_entropy(33, 11, targets="ignored"),
    "another ignore_index": cross_entropy(33, 11, targets="ignored", ignore_index=4),
    "class weights": cross_entropy(33, 11, weighted=True),
    "class weights apart": changed(cross_entropy(33, 11, weighted=True), weight=apart),
    "label smoothing": cross_entropy(33, 11, label_smoothing=0.2),
    "softcap": cross_entropy(33, 11, softcap=3.0),
    "z-loss": cross_entropy(33, 11, z_loss=0.1),
    "everything": cross_entropy(33, 11, weighted=True, label_smoothing=0.2, softcap=3.0, z_loss=0.1, targets="ignored"),
    "int32 targets": changed(cross_entropy(9, 11), target=lambda t: t.int()),
    "uint8 targets": changed(cross_entropy(9, 11), target=lambda t: t.to(torch.uint8)),
    "last positions": changed(cross_entropy(9, 11), input=apart, target=apart),
    "columns": changed(cross_entropy(9, 11), input=by_columns),
    "columns of positions": changed(cross_entropy(4, 11, 5), input=by_columns, target=by_columns),
    "transposed logits": changed(
        cross_entropy(4, 11, 5), input=lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", FORMS)
def test_cross_entropy(form: str, reduction: str, dtype: torch.dtype, instruction_set: str) -> None:
    sample = FORMS[form](dtype).with_arguments(reduction=reduction)
    check(sample)
    leaves = sample.leaves()
    losses = sample.call(ops.cross_entropy, leaves)
    assert _C.last_branch() == "cross_entropy_forward/direct"
    losses.backward(torch.full_like(losses, 0.5))
    # The gradient is written in backward where a loss scale must come before it is rounded.
    in_backward = dtype == torch.float16 or (
        dtype == torch.bfloat16 and ("softcap" in sample.arguments or "z_loss" in sample.arguments)
    )
    assert _C.last_branch() == ("cross_entropy_backward/direct" if in_backward else "scale_gradients/direct")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(9, 11), (11,), (3, 11, 5)])
def test_class_probabilities(shape: tuple[int, ...], reduction: str, dtype: torch.dtype) -> None:
    """Those that need no gradient of their own."""
    sample = cross_entropy_sample(*shape, dtype=dtype, targets="probabilities", weighted=True, reduction=reduction)
    check(Sample(sample.op, sample.arguments, ("input",)))
    logits = sample.arguments["input"].requires_grad_()
    losses = sample.call(ops.cross_entropy, {"input": logits})
    assert _C.last_branch() == "cross_entropy_forward/direct"
    losses.backward(torch.full_like(losses, 0.5))
    backward = "cross_entropy_backward" if dtype == torch.float16 else "scale_gradients"
    assert _C.last_branch() == f"{backward}/direct"


@pytest.mark.parametrize("second", [None, *_C.instruction_sets()])
@pytest.mark.parametrize("first", [None, *_C.instruction_sets()])
def test_backward_on_another_instruction_set(first: str | None, second: str | None) -> None:
    """One set shifts rows that another would not have. None is the one for tiny calls."""
    logits, target = normal(23, 27), integers(27, (23,))
    logits[21, 3] = 40.0  # with it are shifted the rows that do not fill a vector: from row 16 on, or from row 20
    half = logits.half().requires_grad_()
    try:
        _C.set_instruction_set(first)
        loss = ops.cross_entropy(half, target, reduction="sum")
        _C.set_instruction_set(second)
        loss.backward()
    finally:
        _C.set_instruction_set(None)
    assert _C.last_branch() == "cross_entropy_backward/direct"
    exact = half.detach().double().requires_grad_()
    F.cross_entropy(exact, target, reduction="sum").backward()
    assert half.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(half.grad.double(), exact.grad, rtol=2.0**-10, atol=1e-6)


def test_probabilities_with_a_gradient_are_for_the_op_in_backward() -> None:
    sample = cross_entropy_sample(9, 11, targets="probabilities")
    loss = sample.call(ops.cross_entropy, sample.leaves())
    assert _C.last_branch() == "cross_entropy_forward/direct"
    loss.backward()
    assert not _C.last_branch().endswith("backward/direct")


def linear(*shape: int, **options: Any) -> Make:
    return lambda dtype: linear_cross_entropy_sample(shape, 5, 11, dtype=dtype, **options)


LAYERS: dict[str, Make] = {
    "rows": linear(9),
    "no bias": linear(9, bias=False),
    "one row": linear(),
    "positions": linear(3, 4),
    "more features than rows": lambda dtype: linear_cross_entropy_sample(9, 20, 11, dtype=dtype),
    "ignored rows": linear(9, targets="ignored"),
    "class weights": linear(9, weighted=True),
    "everything": linear(9, weighted=True, label_smoothing=0.2, softcap=3.0, z_loss=0.1, targets="ignored"),
    "last positions": changed(linear(9), input=apart, target=apart),
    "int32 targets": changed(linear(9), target=lambda t: t.int()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", LAYERS)
def test_linear_cross_entropy(form: str, reduction: str, dtype: torch.dtype, instruction_set: str) -> None:
    sample = LAYERS[form](dtype).with_arguments(reduction=reduction)
    check(sample)
    losses = sample.call(ops.linear_cross_entropy, sample.leaves())
    assert _C.last_branch() == "linear_cross_entropy_forward/direct"
    losses.backward(torch.full_like(losses, 0.5))
    backward = "linear_cross_entropy_backward" if reduction == "none" else "scale_gradients"
    assert _C.last_branch() == f"{backward}/direct"
    with torch.no_grad():
        assert torch.equal(sample.call(ops.linear_cross_entropy, {}), losses)
    assert _C.last_branch() == "linear_cross_entropy_forward/direct"


@pytest.mark.parametrize("frozen", ["input", "linear_weight", "linear_bias"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_layer_that_is_partly_frozen(reduction: str, frozen: str) -> None:
    sample = linear_cross_entropy_sample(9, 5, 11, reduction=reduction)
    check(Sample(sample.op, sample.arguments, tuple(name for name in sample.differentiable if name != frozen)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_loss_scale_rescues_what_would_be_rounded_to_0(dtype: torch.dtype) -> None:
    """Where forward has not computed the gradient: it is multiplied before it is rounded."""
    logits = torch.zeros(2, 30_000, dtype=dtype)
    logits[:, 0] = 20.0
    logits.requires_grad_()
    loss = ops.cross_entropy(logits, torch.tensor([0, 0]), z_loss=1e-30, output_dtype=torch.float32)
    (loss * 2.0**20).backward()
    assert _C.last_branch() == "cross_entropy_backward/direct"
    probability = math.exp(-20.0) / (1.0 + 29_999 * math.exp(-20.0))
    assert logits.grad is not None
    expected = torch.full((2, 29_999), 2.0**20 * probability / 2, dtype=torch.float64)
    torch.testing.assert_close(logits.grad[:, 1:].double(), expected, rtol=2.0**-7, atol=0.0)
