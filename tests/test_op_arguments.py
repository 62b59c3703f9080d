"""Arguments as a program written for PyTorch hands them over: deprecated positions, things that are no tensors.

What is out of range or has the wrong shape is in tests/test_bad_input.py, mixed dtypes in tests/test_op_dtypes.py.
"""

from __future__ import annotations

from inspect import signature
from itertools import product
from typing import Any

import pytest
import torch
from cases import (
    cross_entropy_sample,
    device,
    embedding_linear_sample,
    integers,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
    normal,
    same_bits,
)
from torch import Tensor

from charlm import ops
from charlm.ops import reference

SAMPLES = {
    "embedding_linear": embedding_linear_sample(5, dtype=torch.float32),
    "cross_entropy": cross_entropy_sample(5, 27, weighted=True, token_weighted=True, dtype=torch.float32),
    "linear_cross_entropy": linear_cross_entropy_sample(5, weighted=True, token_weighted=True, dtype=torch.float32),
    "mlp_cross_entropy": mlp_cross_entropy_sample(5, dtype=torch.float32),
    "log_probs": log_probs_sample(5, 27, dtype=torch.float32),
    "linear_log_probs": linear_log_probs_sample(5, ids_per_row=2, dtype=torch.float32),
}
LOSSES = ("cross_entropy", "linear_cross_entropy", "mlp_cross_entropy")
OPTIONAL = {
    "embedding_linear": {"bias"},
    "cross_entropy": {"weight", "token_weights"},
    "linear_cross_entropy": {"weight", "token_weights", "linear_bias"},
    "mlp_cross_entropy": {"bias1", "bias2"},
    "log_probs": set(),
    "linear_log_probs": {"linear_bias"},
}
# An option of each op that has a value which it cannot have.
WRONG_OPTIONS = {
    "embedding_linear": ("activation", "foo"),
    **dict.fromkeys(LOSSES, ("reduction", "foo")),
    **dict.fromkeys(("log_probs", "linear_log_probs"), ("temperature", -1.0)),
}
every_op = pytest.mark.parametrize("op", SAMPLES)
every_loss = pytest.mark.parametrize("op", LOSSES)
every_output = pytest.mark.parametrize("op", [op for op in SAMPLES if op != "embedding_linear"])
every_tensor = pytest.mark.parametrize(
    ("op", "name"),
    [
        (op, name)
        for op, sample in SAMPLES.items()
        for name, value in sample.arguments.items()
        if isinstance(value, Tensor)
    ],
)


def call(op: str, namespace: Any = ops, **changes: Any) -> Tensor:
    return SAMPLES[op].with_arguments(**changes).call(getattr(namespace, op), {})


# Options of the wrong kind.


@pytest.mark.parametrize("namespace", [ops, reference], ids=["ops", "reference"])
def test_size_average_and_reduce_by_position_are_refused(namespace: Any) -> None:
    """F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction) is how it began."""
    input, target = normal(3, 5), integers(5, (3,))
    for rest in ([False], [True], [None], [None, -100], [False, -100, None], [True, -100, True]):
        with pytest.raises(TypeError, match=r"ignore_index must be an integer, got .*size_average and reduce"):
            namespace.cross_entropy(input, target, None, *rest)
    with pytest.raises(TypeError, match="takes from 2 to 6 positional arguments but 7 were given"):
        namespace.cross_entropy(input, target, None, None, -100, None, "mean")
    for old in ({"size_average": False}, {"reduce": False}):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            namespace.cross_entropy(input, target, **old)


NUMBERS = ("ignore_index", "label_smoothing", "softcap", "z_loss", "temperature")
NUMBERS_OF = {op: [name for name in NUMBERS if name in signature(getattr(ops, op)).parameters] for op in SAMPLES}


def options_of_ops(*wrong: tuple[str, Any]) -> Any:
    """Parameters op, name and value: an op, an option that it has, and something wrong for that."""
    cases = [(op, name, value) for op in SAMPLES for name, value in wrong if name in NUMBERS_OF[op]]
    return pytest.mark.parametrize(("op", "name", "value"), cases)


@pytest.mark.parametrize("namespace", [ops, reference], ids=["ops", "reference"])
@options_of_ops(
    *product(NUMBERS, [True, False, "0.1", [0.1], 1j]),
    ("ignore_index", 1.0),
    ("label_smoothing", None),
    ("z_loss", None),
    ("temperature", None),
)
def test_an_option_that_is_no_number(op: str, name: str, value: Any, namespace: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be "):
        call(op, namespace, **{name: value})


@every_loss
@pytest.mark.parametrize("value", [True, 1, b"mean", ["mean"], {}])
def test_a_reduction_that_is_no_word(value: Any, op: str) -> None:
    with pytest.raises(ValueError, match="reduction must be 'none', 'mean' or 'sum', got "):
        call(op, reduction=value)


@options_of_ops(
    *product(NUMBERS[1:], [float("nan"), float("inf"), -1.0, 10**400]),
    ("ignore_index", 2**63),
    ("ignore_index", -(2**70)),
    ("temperature", 0.0),
)
def test_an_option_out_of_range(op: str, name: str, value: Any) -> None:
    for namespace in (ops, reference):
        with pytest.raises(ValueError, match=rf"^{name} must (be|fit)"):
            call(op, namespace, **{name: value})
        on_meta = SAMPLES[op].on("meta").with_arguments(**{name: value})
        with pytest.raises(ValueError, match=rf"^{name} must (be|fit)"):
            on_meta.call(getattr(namespace, op), {})


@every_output
def test_numbers_of_other_types_are_numbers(op: str) -> None:
    numpy = pytest.importorskip("numpy")

    def of_op(options: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name in NUMBERS_OF[op]}

    options = of_op({"ignore_index": 3, "label_smoothing": 0.25, "softcap": 2.0, "z_loss": 0.5, "temperature": 0.5})
    expected = call(op, **options)
    for convert in (numpy.float32, numpy.float64, torch.tensor):
        others = {name: convert(value) for name, value in options.items()}
        others["ignore_index"] = torch.tensor(3) if convert is torch.tensor else numpy.int64(3)
        assert same_bits(call(op, **others), expected)
    integers = of_op({"label_smoothing": 1, "softcap": 2, "z_loss": 0, "temperature": 2})
    assert same_bits(call(op, **integers), call(op, **{name: float(value) for name, value in integers.items()}))


@every_output
@pytest.mark.parametrize("value", ["float32", torch.int64, torch.complex64, float, 1])
def test_an_output_dtype_that_no_result_can_have(value: Any, op: str) -> None:
    for namespace in (ops, reference):
        with pytest.raises(ValueError, match=r"output_dtype must be torch\.float32, .* or None"):
            call(op, namespace, output_dtype=value)


# What is no tensor, or not one of the plain ones.


@every_tensor
@pytest.mark.parametrize("value", [None, 1.0, 3, "text", [[0.5]], (1, 2), b"", True], ids=repr)
def test_something_that_is_no_tensor(op: str, name: str, value: Any) -> None:
    if value is None and name in OPTIONAL[op]:
        return
    sample = SAMPLES[op].with_arguments(**{name: value})
    expected = "a tensor or None" if name in OPTIONAL[op] else "a tensor"
    message = rf"^{name} must be {expected}, got {type(value).__name__}$"
    leaves = {key: value for key, value in SAMPLES[op].leaves().items() if key != name}
    for given in ({}, leaves):
        with pytest.raises(TypeError, match=message):
            sample.call(getattr(ops, op), given)
    with torch.autocast(device.type, dtype=torch.bfloat16), pytest.raises(TypeError, match=message):
        sample.call(getattr(ops, op), {})


@every_tensor
def test_an_array_of_numpy(op: str, name: str) -> None:
    pytest.importorskip("numpy")
    array = SAMPLES[op].arguments[name].cpu().numpy()
    with pytest.raises(TypeError, match=rf"^{name} must be a tensor( or None)?, got ndarray$"):
        call(op, **{name: array})


@every_tensor
def test_something_that_is_no_tensor_under_torch_func(op: str, name: str) -> None:
    sample = SAMPLES[op].with_arguments(**{name: [1.0]})
    others = [other for other in sample.differentiable if other != name]
    if not others:
        return
    differentiable = others[0]
    value = SAMPLES[op].arguments[differentiable]

    def total(value: Tensor) -> Tensor:
        return sample.call(getattr(ops, op), {differentiable: value}).sum()

    for transform in (torch.func.grad(total), lambda value: torch.func.jvp(total, (value,), (value,))):
        with pytest.raises(TypeError, match=rf"^{name} must be a tensor"):
            transform(value)


@pytest.mark.cpu
@every_tensor
def test_a_sparse_tensor(op: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a dense tensor, got one with layout torch.sparse_coo$"):
        call(op, **{name: SAMPLES[op].arguments[name].to_sparse()})


@pytest.mark.cpu
@every_tensor
def test_a_nested_tensor(op: str, name: str) -> None:
    """Ids of embedding_linear may be nested: tests/test_embedding_linear.py."""
    if (op, name) == ("embedding_linear", "ids"):
        return
    value = SAMPLES[op].arguments[name]
    nested = torch.nested.nested_tensor([value, value], layout=torch.jagged)
    with pytest.raises(
        ValueError, match=rf"^{name} must be a dense tensor, got a nested one; its values\(\) are dense"
    ):
        call(op, **{name: nested})


# Errors that PyTorch's own callers catch.


@every_op
def test_wrong_shapes_are_value_errors_and_runtime_errors(op: str) -> None:
    sample = SAMPLES[op]
    bad = {
        name: torch.zeros(2, 2, 2, 2, device=device, dtype=sample.arguments[name].dtype)
        for name in sample.differentiable
    }
    for name, value in bad.items():
        for error in (ValueError, RuntimeError):
            with pytest.raises(error):
                call(op, **{name: value})
    name, value = WRONG_OPTIONS[op]
    with pytest.raises(RuntimeError, match=name):
        call(op, **{name: value})


def test_other_errors_stay_what_they_are() -> None:
    class Stop(Exception):
        pass

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, *_: Any, **__: Any) -> Any:
            raise Stop

    for op in SAMPLES:
        with Mode(), pytest.raises(Stop):
            call(op)
