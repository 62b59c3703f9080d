"""Bad arguments of the ops: an error that names the argument, what was expected and what came; nothing else happens.

Of ids and targets out of range a GPU makes NaN instead: tests/out_of_range.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import cases
import out_of_range
import pytest
import torch
from cases import (
    ALL_LOSS_OPTIONS,
    DTYPES,
    REDUCTIONS,
    Sample,
    check,
    cross_entropy_sample,
    device,
    embedding_linear_sample,
    evaluate,
    linear_cross_entropy_sample,
    mlp_cross_entropy_sample,
    names_of,
    same_bits,
)
from torch import Tensor

from charlm import ops

GOOD = {
    "embedding_linear": embedding_linear_sample(5, 3, 27, 10, 200, dtype=torch.float32),
    "cross_entropy": cross_entropy_sample(5, 27, dtype=torch.float32),
    "linear_cross_entropy": linear_cross_entropy_sample(5, 6, 27, dtype=torch.float32),
    "mlp_cross_entropy": mlp_cross_entropy_sample(5, 3, 27, 10, 200, dtype=torch.float32),
}


def changed(sample: Sample, changes: dict[str, Any]) -> Sample:
    """The sample with other arguments; tensors of the CPU, as parameters of tests are, move to where the others are."""
    return sample.with_arguments(
        **{
            name: value.to(device) if isinstance(value, Tensor) and value.is_cpu else value
            for name, value in changes.items()
        }
    )


def refuses(sample: Sample, error: type[Exception] | tuple[type[Exception], ...], message: str, **changes: Any) -> None:
    """The op raises for the changed arguments, with and without gradients, leaves them alone, and works afterwards."""
    bad = changed(sample, changes)
    tensors = {name: value for name, value in bad.arguments.items() if isinstance(value, Tensor) and not value.is_meta}
    before = {name: value.clone() for name, value in tensors.items()}
    differentiable = {name: bad.arguments[name] for name in bad.differentiable}
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in differentiable.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    for replaced in ({}, leaves):
        with pytest.raises(error, match=message):
            bad.call(getattr(ops, bad.op), replaced)
    for name, value in before.items():
        assert same_bits(tensors[name], value), f"{name} changed"
    assert evaluate(sample)["result"].isfinite().all()


def finds(sample: Sample, message: str, **changes: Any) -> None:
    """The op finds the value that is out of range: for an error, or for NaN where it should be."""
    if cases.on_cuda:
        check(changed(sample, changes), truth=out_of_range)
    else:
        refuses(sample, IndexError, re.escape(message), **changes)


def with_value(tensor: Tensor, index: tuple[int, ...], value: int) -> Tensor:
    copy = tensor.clone()
    copy[index] = value
    return copy


@pytest.mark.parametrize("value", [27, -1, 2**40, -(2**40), 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("index", [(0, 0), (3, 1), (4, 2)])
@pytest.mark.parametrize("vocab_size", [27, 400])
def test_ids_out_of_range(vocab_size: int, index: tuple[int, int], value: int) -> None:
    value = vocab_size if value == 27 else value
    sample = embedding_linear_sample(5, 3, vocab_size, 10, 200, dtype=torch.float32)
    message = f"ids[{index[0]}, {index[1]}] = {value} is out of range for {vocab_size} embeddings"
    finds(sample, message, ids=with_value(sample.arguments["ids"], index, value))


def test_ids_out_of_range_in_any_shape_and_dtype() -> None:
    sample = GOOD["embedding_linear"]
    for dtype, value in ((torch.uint8, 255), (torch.int8, -128), (torch.int16, -1), (torch.uint16, 65535)):
        ids = torch.tensor([3, value, 4]).to(dtype)
        finds(sample, f"ids[1] = {value} is out of range for 27 embeddings", ids=ids)
    deep = torch.zeros(2, 4, 3, dtype=torch.int32)
    deep[1, 2, 0] = 30
    finds(sample, "ids[1, 2, 0] = 30 is out of range for 27 embeddings", ids=deep)
    windows = torch.tensor([1, 2, 3, 4, 99, 5, 6], device=device).unfold(0, 3, 1)
    finds(sample, "ids[2, 2] = 99 is out of range for 27 embeddings", ids=windows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": torch.tensor(3)}, r"ids must have .*\(\)"),
        ({"ids": torch.zeros(5, 4, dtype=torch.int64)}, r"weight must have shape \(H=200, T\*D=40\), got \(200, 30\)"),
        ({"embedding": torch.zeros(27)}, r"embedding must have .*\(27,\)"),
        ({"embedding": torch.zeros(0, 10)}, r"embedding must have at least one row, got shape \(0, 10\)"),
        ({"embedding": torch.zeros(3, 27, 10)}, r"embedding must have .*\(3, 27, 10\)"),
        ({"weight": torch.zeros(200, 31)}, r"weight must have shape \(H=200, T\*D=30\), got \(200, 31\)"),
        ({"weight": torch.zeros(30)}, r"weight must have .*got \(30,\)"),
        ({"weight": torch.zeros(2, 200, 30)}, r"weight must have .*got \(2, 200, 30\)"),
        ({"bias": torch.zeros(199)}, r"bias must have shape \(H=200,?\), got \(199,?\)"),
        ({"bias": torch.zeros(1, 200)}, r"bias must have shape \(H=200,?\), got \(1, 200\)"),
        ({"bias": torch.zeros(())}, r"bias must have shape \(H=200,?\), got \(\)"),
        ({"activation": "softmax"}, r"activation must be .*softmax"),
        ({"activation": None}, r"activation must be .*None"),
    ],
)
def test_embedding_linear_shapes_and_values(changes: dict[str, Any], message: str) -> None:
    refuses(GOOD["embedding_linear"], ValueError, message, **changes)


@pytest.mark.parametrize("value", [27, 31, -1, 2**40, -(2**63)])
@pytest.mark.parametrize("options", [{}, ALL_LOSS_OPTIONS], ids=names_of)
@pytest.mark.parametrize("make_sample", [cross_entropy_sample, linear_cross_entropy_sample])
@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_out_of_range(
    dtype: torch.dtype, make_sample: Callable[..., Sample], options: dict[str, Any], value: int
) -> None:
    target = torch.tensor([0, -100, 26, value, 5])
    for reduction in REDUCTIONS:
        sample = make_sample(5, 27, dtype=dtype, **options)
        finds(sample, f"target[3] = {value} is out of range for 27 classes", target=target, reduction=reduction)


def test_targets_out_of_range_in_any_shape_and_dtype() -> None:
    for op in ("cross_entropy", "linear_cross_entropy", "mlp_cross_entropy"):
        sample = GOOD[op]
        with_other = {"target": torch.tensor([1, -100, 2, 3, 4]), "ignore_index": 1}
        finds(sample, "target[1] = -100 is out of range for 27 classes", **with_other)
        signed = torch.tensor([1, 2, 3, 4, -128], dtype=torch.int8)
        finds(sample, "target[4] = -128 is out of range for 27 classes", target=signed)
        unsigned = torch.tensor([1, 200, 3, 4, 5], dtype=torch.uint8)
        finds(sample, "target[1] = 200 is out of range for 27 classes", target=unsigned)

    pixels = cross_entropy_sample(2, 7, 3, 4)
    target = with_value(pixels.arguments["target"], (1, 2, 3), 7)
    finds(pixels, "target[1, 2, 3] = 7 is out of range for 7 classes", target=target)
    finds(cross_entropy_sample(7), "target = 7 is out of range for 7 classes", target=torch.tensor(7))
    leading = linear_cross_entropy_sample((2, 3))
    target = with_value(leading.arguments["target"], (1, 2), 27)
    finds(leading, "target[1, 2] = 27 is out of range for 27 classes", target=target)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("value", [27, -1, -100, 2**40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_and_targets_of_a_whole_model_out_of_range(dtype: torch.dtype, value: int, reduction: str) -> None:
    sample = GOOD["mlp_cross_entropy"].to(dtype).with_arguments(reduction=reduction, ignore_index=-7)
    ids, target = (sample.arguments[name] for name in ("ids", "target"))
    finds(sample, f"ids[3, 1] = {value} is out of range for 27 tokens", ids=with_value(ids, (3, 1), value))
    finds(sample, f"target[2] = {value} is out of range for 27 classes", target=with_value(target, (2,), value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.tensor(1.0)}, r"input must have .*\(\)"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, r"target must have .*got \(4,\)"),
        ({"target": torch.tensor(3)}, r"target must have .*got \(\)"),
        ({"target": torch.zeros(5, 1, dtype=torch.int64)}, r"target must have .*got \(5, 1\)"),
        ({"target": torch.zeros(5, 26)}, r"target must have .*got \(5, 26\)"),
        ({"target": torch.zeros(27, 5)}, r"target must have .*got \(27, 5\)"),
        ({"weight": torch.ones(26)}, r"weight must have shape .*27.* got \(26,\)"),
        ({"weight": torch.ones(27, 1)}, r"weight must have shape .*27.* got \(27, 1\)"),
    ],
)
def test_cross_entropy_shapes(changes: dict[str, Any], message: str) -> None:
    refuses(GOOD["cross_entropy"], ValueError, message, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.tensor(1.0)}, r"input must have .*\(\)"),
        ({"input": torch.zeros(5, 7)}, r"(input|linear_weight) must have shape .*got"),
        ({"linear_weight": torch.zeros(27)}, r"linear_weight must have shape .*got \(27,\)"),
        ({"linear_weight": torch.zeros(27, 7)}, r"linear_weight must have shape .*6.* got \(27, 7\)"),
        ({"linear_weight": torch.zeros(27, 2, 6)}, r"linear_bias must have the shape .*\(27, 2\), got \(27,\)"),
        (
            {"linear_weight": torch.zeros(27, 2, 7), "linear_bias": None},
            r"input must have shape \(N, D=7\) .*got \(5, 6\)",
        ),
        ({"linear_bias": torch.zeros(26)}, r"linear_bias must have shape .*27.* got \(26,\)"),
        ({"linear_bias": torch.zeros(27, 1)}, r"linear_bias must have shape .*27.* got \(27, 1\)"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, r"target must have .*got \(4,\)"),
        ({"target": torch.zeros(5, 1, dtype=torch.int64)}, r"target must have .*got \(5, 1\)"),
        ({"target": torch.zeros(5, 26)}, r"target must have .*got \(5, 26\)"),
        ({"weight": torch.ones(26)}, r"weight must have shape .*27.* got \(26,\)"),
    ],
)
def test_linear_cross_entropy_shapes(changes: dict[str, Any], message: str) -> None:
    refuses(GOOD["linear_cross_entropy"], ValueError, message, **changes)


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reduction", "average"),
        ("reduction", None),
        ("label_smoothing", 1.5),
        ("label_smoothing", -0.1),
        ("label_smoothing", float("nan")),
        ("softcap", 0.0),
        ("softcap", -30.0),
        ("softcap", float("nan")),
    ],
)
def test_loss_options(name: str, value: Any, op: str) -> None:
    refuses(GOOD[op], ValueError, rf"{name} must be .*{value}", **{name: value})


@pytest.mark.parametrize(
    ("op", "name", "dtype"),
    [
        ("embedding_linear", "ids", torch.float32),
        ("embedding_linear", "ids", torch.bool),
        ("embedding_linear", "ids", torch.complex64),
        ("embedding_linear", "embedding", torch.int64),
        ("embedding_linear", "weight", torch.float64),
        ("embedding_linear", "weight", torch.int32),
        ("embedding_linear", "bias", torch.bfloat16),
        ("cross_entropy", "input", torch.int64),
        ("cross_entropy", "input", torch.complex64),
        ("cross_entropy", "target", torch.float32),
        ("cross_entropy", "target", torch.bool),
        ("linear_cross_entropy", "input", torch.int64),
        ("linear_cross_entropy", "linear_weight", torch.float64),
        ("linear_cross_entropy", "linear_weight", torch.float16),
        ("linear_cross_entropy", "linear_bias", torch.float64),
        ("linear_cross_entropy", "target", torch.bool),
    ],
)
def test_dtypes(op: str, name: str, dtype: torch.dtype) -> None:
    sample = GOOD[op]
    refuses(sample, (TypeError, ValueError), rf"\b{name}\b", **{name: sample.arguments[name].to(dtype)})


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
def test_weight_and_probabilities_of_the_wrong_dtype(op: str) -> None:
    sample = GOOD[op]
    refuses(sample, (TypeError, ValueError), r"\bweight\b", weight=torch.ones(27, dtype=torch.int64))
    integers = torch.ones(5, 27, dtype=torch.int64)
    refuses(sample, (TypeError, ValueError), r"\btarget\b", target=integers)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (op, name)
        for op, sample in GOOD.items()
        for name, value in sample.arguments.items()
        if isinstance(value, Tensor)
    ],
)
def test_one_argument_on_another_device(op: str, name: str) -> None:
    sample = GOOD[op]
    for other in {"cpu", "meta"} - {device.type}:
        bad = sample.with_arguments(**{name: sample.arguments[name].to(other)})
        for leaves in ({}, bad.leaves()):
            with pytest.raises((TypeError, ValueError, RuntimeError), match=rf"\b{name}\b"):
                bad.call(getattr(ops, op), leaves)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (op, name)
        for op, sample in GOOD.items()
        for name, value in sample.arguments.items()
        if isinstance(value, Tensor)
    ],
)
def test_something_that_is_not_a_tensor(op: str, name: str) -> None:
    sample = GOOD[op]
    bad = sample.with_arguments(**{name: sample.arguments[name].tolist()})
    with pytest.raises((TypeError, ValueError, RuntimeError, AttributeError)):
        bad.call(getattr(ops, op), {})


def test_an_unknown_instruction_set() -> None:
    from charlm import _C

    before = _C.instruction_set()
    with pytest.raises(ValueError, match="instruction set 'abacus'"):
        _C.set_instruction_set("abacus")
    with pytest.raises(TypeError):
        _C.set_instruction_set(512)  # type: ignore[arg-type]
    assert _C.instruction_set() == before
