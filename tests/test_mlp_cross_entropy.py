"""The whole model and its loss as one op: values and gradients of its plain-PyTorch twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import device, generator
from torch import Tensor

from charlm import ops
from charlm.ops import reference

NAMES = ("embedding", "weight1", "bias1", "weight2", "bias2")
# (leading dimensions, T, V, D, H)
SHAPES = [
    ((), 3, 27, 10, 20),
    ((1,), 1, 1, 1, 1),
    ((7,), 16, 5, 3, 17),
    ((4, 9), 2, 28, 5, 33),
    ((300,), 3, 27, 10, 200),
    ((1300,), 3, 27, 4, 31),
    ((60,), 2, 513, 9, 40),
]


def make_arguments(shape: tuple[Any, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    leading, length, vocab_size, dim, hidden = shape
    source = generator(3)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=source, dtype=torch.float64).to(device, dtype).requires_grad_()

    ids = torch.randint(min(vocab_size, 8), (*leading, length), generator=source).to(device)
    target = torch.randint(vocab_size, leading, generator=source).to(device)
    parameters = (normal(vocab_size, dim), normal(hidden, length * dim), normal(hidden), normal(vocab_size, hidden))
    return ids, target, *parameters, normal(vocab_size)


def value_and_gradients(function: Any, arguments: tuple[Tensor, ...], upstream: Tensor, **options: Any) -> list[Tensor]:
    loss = function(*arguments, **options)
    return [loss, *torch.autograd.grad(loss, arguments[2:], upstream.to(loss).expand(loss.shape))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_equals_reference(shape: tuple[Any, ...], reduction: str, softcap: float | None, instruction_set: str) -> None:
    arguments = make_arguments(shape, torch.float64)
    upstream = (
        torch.linspace(-1, 2, arguments[1].numel()).reshape(shape[0]) if reduction == "none" else torch.tensor(0.7)
    )
    options = {"reduction": reduction, "softcap": softcap}
    results = value_and_gradients(ops.mlp_cross_entropy, arguments, upstream, **options)
    expected = value_and_gradients(reference.mlp_cross_entropy, arguments, upstream, **options)
    for name, one, other in zip(("loss", *NAMES), results, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.03), (torch.float16, 4e-3)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_other_dtypes(dtype: torch.dtype, tolerance: float, reduction: str) -> None:
    arguments = make_arguments(((50,), 3, 27, 4, 12), dtype)
    exact = tuple(a if i < 2 else a.detach().double().requires_grad_() for i, a in enumerate(arguments))
    results = value_and_gradients(ops.mlp_cross_entropy, arguments, torch.tensor(1.0), reduction=reduction)
    expected = value_and_gradients(reference.mlp_cross_entropy, exact, torch.tensor(1.0), reduction=reduction)
    for one, other in zip(results, expected, strict=True):
        assert one.dtype == dtype
        scale = other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(reduction: str, softcap: float | None) -> None:
    ids, target, *parameters = make_arguments(((6,), 2, 5, 3, 4), torch.float64)
    assert torch.autograd.gradcheck(
        lambda *p: ops.mlp_cross_entropy(ids, target, *p, reduction=reduction, softcap=softcap), parameters
    )


def test_biases_may_be_missing() -> None:
    ids, target, embedding, weight1, _, weight2, _ = make_arguments(((20,), 2, 27, 4, 9), torch.float64)
    parameters = (embedding, weight1, weight2)
    results = []
    for function in (ops.mlp_cross_entropy, reference.mlp_cross_entropy):
        loss = function(ids, target, embedding, weight1, None, weight2, None)
        results.append([loss, *torch.autograd.grad(loss, parameters)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_no_examples() -> None:
    arguments = make_arguments(((0,), 2, 27, 4, 9), torch.float64)
    assert ops.mlp_cross_entropy(*arguments).isnan()
    loss = ops.mlp_cross_entropy(*arguments, reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert all((a.grad == 0).all() for a in arguments[2:])
    assert ops.mlp_cross_entropy(*arguments, reduction="none").shape == (0,)


def test_second_backward() -> None:
    arguments = make_arguments(((9,), 2, 27, 4, 9), torch.float64)
    loss = ops.mlp_cross_entropy(*arguments)
    first = torch.autograd.grad(loss, arguments[2:], retain_graph=True)
    second = torch.autograd.grad(loss, arguments[2:], torch.full_like(loss, 2.0))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, other)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(reduction: str) -> None:
    arguments = make_arguments(((9,), 2, 27, 4, 9), torch.float32)
    code = {"none": 0, "mean": 1}[reduction]
    plain = tuple(a.detach() for a in arguments)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.charlm.mlp_cross_entropy_forward.default, (*plain, code, 0.0, True), test_utils=tests
    )
    torch.library.opcheck(
        torch.ops.charlm.mlp_cross_entropy_backward.default,
        (torch.ones(9, device=device), *plain, 0.0),
        test_utils=tests,
    )


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t.double(), "ids must have an integer dtype, got float64"),
        (1, lambda t: t[1:], r"target must have the shape of ids without its last dimension, \(9,\), got \(8,\)"),
        (3, lambda t: t[:, 1:], r"weight1 must have shape \(H, T\*D\) = \(9, 8\), got \(9, 7\)"),
        (5, lambda t: t.float(), "weight2 must have the dtype of embedding, float64, got float32"),
    ],
)
def test_bad_arguments(position: int, change: Any, message: str) -> None:
    arguments = list(make_arguments(((9,), 2, 27, 4, 9), torch.float64))
    arguments[position] = change(arguments[position])
    with pytest.raises(ValueError, match=message):
        ops.mlp_cross_entropy(*arguments)
