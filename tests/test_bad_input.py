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
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
    names_of,
    same_bits,
)
from torch import Tensor

from charlm import ops
from charlm.ops import reference

GOOD = {
    "embedding_linear": embedding_linear_sample(5, 3, 27, 10, 200, dtype=torch.float32),
    "cross_entropy": cross_entropy_sample(5, 27, dtype=torch.float32),
    "linear_cross_entropy": linear_cross_entropy_sample(5, 6, 27, dtype=torch.float32),
    "mlp_cross_entropy": mlp_cross_entropy_sample(5, 3, 27, 10, 200, dtype=torch.float32),
    "log_probs": log_probs_sample(5, 27, dtype=torch.float32),
    "linear_log_probs": linear_log_probs_sample(5, 6, 27, ids_per_row=2, dtype=torch.float32),
}


def changed(sample: Sample, changes: dict[str, Any]) -> Sample:
    """The sample with other arguments; tensors of the CPU, as parameters of tests are, move to where the others are."""
    return sample.with_arguments(
        **{
            name: value.to(device) if isinstance(value, Tensor) and value.is_cpu else value
            for name, value in changes.items()
        }
    )


def refuses(sample: Sample, error: type[Exception], message: str, **changes: Any) -> None:
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
        raises(bad, replaced, error, message)
    for name, value in before.items():
        assert same_bits(tensors[name], value), f"{name} changed"
    assert evaluate(sample)["result"].isfinite().all()


def raises(bad: Sample, replaced: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        bad.call(getattr(ops, bad.op), replaced)
    assert str(raised.value) == message


def finds(sample: Sample, message: str, **changes: Any) -> None:
    """The op finds the value that is out of range: for an error, or for NaN where it should be."""
    if cases.on_cuda:
        check(changed(sample, changes), truth=out_of_range)
    else:
        refuses(sample, IndexError, message, **changes)


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
        ({"ids": torch.tensor(3)}, "ids must have shape (..., T), got ()"),
        ({"ids": torch.zeros(5, 4, dtype=torch.int64)}, "weight must have shape (H=200, T*D=40), got (200, 30)"),
        ({"embedding": torch.zeros(27)}, "embedding must have shape (V, D), got (27,)"),
        ({"embedding": torch.zeros(0, 10)}, "embedding must have at least one row, got shape (0, 10)"),
        ({"embedding": torch.zeros(3, 27, 10)}, "embedding must have shape (V, D), got (3, 27, 10)"),
        ({"weight": torch.zeros(200, 31)}, "weight must have shape (H=200, T*D=30), got (200, 31)"),
        ({"weight": torch.zeros(30)}, "weight must have shape (H, T*D), got (30,)"),
        ({"weight": torch.zeros(2, 200, 30)}, "weight must have shape (H, T*D), got (2, 200, 30)"),
        ({"bias": torch.zeros(199)}, "bias must have shape (H=200,), got (199,)"),
        ({"bias": torch.zeros(1, 200)}, "bias must have shape (H=200,), got (1, 200)"),
        ({"bias": torch.zeros(())}, "bias must have shape (H=200,), got ()"),
        (
            {"activation": "softmax"},
            "activation must be one of 'tanh', 'relu', 'gelu', 'silu', 'none', got 'softmax'",
        ),
        ({"activation": None}, "activation must be one of 'tanh', 'relu', 'gelu', 'silu', 'none', got None"),
    ],
)
def test_embedding_linear_shapes_and_values(changes: dict[str, Any], message: str) -> None:
    refuses(GOOD["embedding_linear"], ValueError, message, **changes)


@pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op, good in GOOD.items() for name, value in good.arguments.items() if isinstance(value, Tensor)],
)
def test_a_tensor_without_dimensions_is_named(op: str, name: str) -> None:
    bad = GOOD[op].with_arguments(**{name: GOOD[op].arguments[name].new_zeros(())})
    for replaced in ({}, bad.leaves()):
        with pytest.raises(ValueError, match=rf"^{name} must have .*, got \(\)$"):
            bad.call(getattr(ops, op), replaced)


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


TOKEN_WEIGHTS: list[tuple[dict[str, Any], str]] = [
    ({"token_weights": torch.ones(shape)}, f"token_weights must have the shape of the row losses, (5,), got {shape}")
    for shape in ((), (1,), (4,), (27,), (5, 1), (1, 5))
]


@pytest.mark.parametrize(("changes", "message"), TOKEN_WEIGHTS)
@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
def test_token_weights_that_require_a_gradient(op: str, changes: dict[str, Tensor], message: str) -> None:
    """The reference, which serves them, must not broadcast."""
    weights = changes["token_weights"].to(device).requires_grad_()
    raises(GOOD[op].with_arguments(token_weights=weights), {}, ValueError, message)


def test_token_weights_of_pixels_and_of_several_leading_dimensions() -> None:
    message = "token_weights must have the shape of the row losses, (2, 3), got (3, 2)"
    for sample in (cross_entropy_sample(2, 7, 3), linear_cross_entropy_sample((2, 3))):
        refuses(sample, ValueError, message, token_weights=torch.ones(3, 2))
    message = "token_weights must have the shape of the row losses, (), got (1,)"
    for sample in (cross_entropy_sample(7), linear_cross_entropy_sample(())):
        refuses(sample, ValueError, message, token_weights=torch.ones(1))


INDICES_OR_PROBABILITIES = (
    "target must have the shape of input (5, 27) without its class dimension (class indices) or the same shape (class "
    "probabilities), got "
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.tensor(1.0)}, "input must have shape (C,), (N, C) or (N, C, d1, ...), got ()"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, INDICES_OR_PROBABILITIES + "(4,)"),
        ({"target": torch.tensor(3)}, INDICES_OR_PROBABILITIES + "()"),
        ({"target": torch.zeros(5, 1, dtype=torch.int64)}, INDICES_OR_PROBABILITIES + "(5, 1)"),
        ({"target": torch.zeros(5, 26)}, INDICES_OR_PROBABILITIES + "(5, 26)"),
        ({"target": torch.zeros(27, 5)}, INDICES_OR_PROBABILITIES + "(27, 5)"),
        ({"weight": torch.ones(26)}, "weight must have shape (C=27,), got (26,)"),
        ({"weight": torch.ones(27, 1)}, "weight must have shape (C=27,), got (27, 1)"),
        *TOKEN_WEIGHTS,
    ],
)
def test_cross_entropy_shapes(changes: dict[str, Any], message: str) -> None:
    refuses(GOOD["cross_entropy"], ValueError, message, **changes)


INDICES_OR_ROWS = (
    "target must have the shape of input (5, 6) without its last dimension (class indices), or with C=27 in its place "
    "(class probabilities), got "
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.tensor(1.0)}, "input must have shape (..., D), got ()"),
        ({"input": torch.zeros(5, 7)}, "linear_weight must have shape (C, D=7), got (27, 6)"),
        ({"linear_weight": torch.zeros(27)}, "linear_weight must have shape (C, D=6), got (27,)"),
        ({"linear_weight": torch.zeros(27, 7)}, "linear_weight must have shape (C, D=6), got (27, 7)"),
        (
            {"linear_weight": torch.zeros(27, 2, 6)},
            "linear_bias must have the shape of linear_weight without its last dimension, (27, 2), got (27,)",
        ),
        (
            {"linear_weight": torch.zeros(27, 2, 7), "linear_bias": None},
            "input must have shape (N, D=7) where linear_weight has more than two dimensions, got (5, 6)",
        ),
        ({"linear_bias": torch.zeros(26)}, "linear_bias must have shape (C=27,), got (26,)"),
        ({"linear_bias": torch.zeros(27, 1)}, "linear_bias must have shape (C=27,), got (27, 1)"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, INDICES_OR_ROWS + "(4,)"),
        ({"target": torch.zeros(5, 1, dtype=torch.int64)}, INDICES_OR_ROWS + "(5, 1)"),
        (
            {"target": torch.zeros(5, 26)},
            "target must have shape (..., C=27) with the leading dimensions of input (5, 6), got (5, 26)",
        ),
        ({"weight": torch.ones(26)}, "weight must have shape (C=27,), got (26,)"),
        *TOKEN_WEIGHTS,
    ],
)
def test_linear_cross_entropy_shapes(changes: dict[str, Any], message: str) -> None:
    refuses(GOOD["linear_cross_entropy"], ValueError, message, **changes)


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("reduction", "average", "reduction must be 'none', 'mean' or 'sum', got 'average'"),
        ("reduction", None, "reduction must be 'none', 'mean' or 'sum', got None"),
        ("label_smoothing", 1.5, "label_smoothing must be between 0 and 1, got 1.5"),
        ("label_smoothing", -0.1, "label_smoothing must be between 0 and 1, got -0.1"),
        ("label_smoothing", float("nan"), "label_smoothing must be between 0 and 1, got nan"),
        ("softcap", 0.0, "softcap must be positive and finite, or None, got 0.0"),
        ("softcap", -30.0, "softcap must be positive and finite, or None, got -30.0"),
        ("softcap", float("nan"), "softcap must be positive and finite, or None, got nan"),
    ],
)
def test_loss_options(name: str, value: Any, message: str, op: str) -> None:
    refuses(GOOD[op], ValueError, message, **{name: value})


IDS = " without its last dimension, or with K ids a row in its place, got "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.tensor(1.0)}, "input must have shape (..., C), got ()"),
        ({"ids": torch.zeros(4, dtype=torch.int64)}, f"ids must have the shape of input (5, 27){IDS}(4,)"),
        ({"ids": torch.zeros(4, 2, dtype=torch.int64)}, f"ids must have the shape of input (5, 27){IDS}(4, 2)"),
        ({"ids": torch.zeros(5, 2, 3, dtype=torch.int64)}, f"ids must have the shape of input (5, 27){IDS}(5, 2, 3)"),
        ({"input": torch.zeros(2, 5, 27)}, f"ids must have the shape of input (2, 5, 27){IDS}(5,)"),
    ],
)
def test_log_probs_shapes(changes: dict[str, Any], message: str) -> None:
    refuses(GOOD["log_probs"], ValueError, message, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.tensor(1.0)}, "input must have shape (..., D), got ()"),
        ({"input": torch.zeros(5, 7)}, "linear_weight must have shape (C, D=7), got (27, 6)"),
        ({"linear_weight": torch.zeros(27)}, "linear_weight must have shape (C, D=6), got (27,)"),
        ({"linear_weight": torch.zeros(27, 2, 6)}, "linear_weight must have shape (C, D=6), got (27, 2, 6)"),
        ({"linear_bias": torch.zeros(26)}, "linear_bias must have shape (C=27,), got (26,)"),
        ({"linear_bias": torch.zeros(27, 1)}, "linear_bias must have shape (C=27,), got (27, 1)"),
        ({"ids": torch.zeros(4, dtype=torch.int64)}, f"ids must have the shape of input (5, 6){IDS}(4,)"),
        ({"ids": torch.zeros(4, 2, dtype=torch.int64)}, f"ids must have the shape of input (5, 6){IDS}(4, 2)"),
    ],
)
def test_linear_log_probs_shapes(changes: dict[str, Any], message: str) -> None:
    refuses(GOOD["linear_log_probs"], ValueError, message, **changes)


@pytest.mark.parametrize("op", ["log_probs", "linear_log_probs"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 0.0, "temperature must be positive and finite, got 0.0"),
        ("temperature", -0.5, "temperature must be positive and finite, got -0.5"),
        ("temperature", float("nan"), "temperature must be positive and finite, got nan"),
        ("temperature", float("inf"), "temperature must be positive and finite, got inf"),
        ("softcap", 0.0, "softcap must be positive and finite, or None, got 0.0"),
        ("softcap", float("nan"), "softcap must be positive and finite, or None, got nan"),
    ],
)
def test_log_probs_options(name: str, value: Any, message: str, op: str) -> None:
    refuses(GOOD[op], ValueError, message, **{name: value})


@pytest.mark.parametrize("op", ["log_probs", "linear_log_probs"])
@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("value", [1e-46, 1e-40, 1e39])
def test_a_temperature_or_softcap_that_float32_cannot_hold(value: float, name: str, op: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        sample = GOOD[op].to(dtype).with_arguments(**{name: value})
        for namespace in (ops, reference):
            with pytest.raises(ValueError, match=rf"{name} must be between .* in float32, got {re.escape(str(value))}"):
                sample.call(getattr(namespace, op), {})
    if value < 1:  # float64 holds it
        found = GOOD[op].to(torch.float64).with_arguments(**{name: value}).results(getattr(ops, op), {})
        assert not found["log_probs"].isnan().any()


AN_INTEGER = "must have an integer dtype"
FLOATING = "must have dtype float32, float64, bfloat16 or float16"
LIKE_EMBEDDING = "must have the dtype of embedding, float32"
LIKE_INPUT = "must have the dtype of input, float32"


@pytest.mark.parametrize(
    ("op", "name", "dtype", "expected"),
    [
        ("embedding_linear", "ids", torch.float32, AN_INTEGER),
        ("embedding_linear", "ids", torch.bool, AN_INTEGER),
        ("embedding_linear", "ids", torch.complex64, AN_INTEGER),
        ("embedding_linear", "embedding", torch.int64, FLOATING),
        ("embedding_linear", "weight", torch.float64, LIKE_EMBEDDING),
        ("embedding_linear", "weight", torch.int32, LIKE_EMBEDDING),
        ("embedding_linear", "bias", torch.bfloat16, LIKE_EMBEDDING),
        ("cross_entropy", "input", torch.int64, FLOATING),
        ("cross_entropy", "input", torch.complex64, FLOATING),
        ("cross_entropy", "target", torch.float32, AN_INTEGER),
        ("cross_entropy", "target", torch.bool, AN_INTEGER),
        ("linear_cross_entropy", "input", torch.int64, FLOATING),
        ("linear_cross_entropy", "linear_weight", torch.float64, LIKE_INPUT),
        ("linear_cross_entropy", "linear_weight", torch.float16, LIKE_INPUT),
        ("linear_cross_entropy", "linear_bias", torch.float64, LIKE_INPUT),
        ("linear_cross_entropy", "target", torch.bool, AN_INTEGER),
        ("log_probs", "input", torch.int64, FLOATING),
        ("log_probs", "ids", torch.float32, AN_INTEGER),
        ("log_probs", "ids", torch.bool, AN_INTEGER),
        ("linear_log_probs", "input", torch.complex64, FLOATING),
        ("linear_log_probs", "linear_weight", torch.bfloat16, LIKE_INPUT),
        ("linear_log_probs", "linear_bias", torch.float64, LIKE_INPUT),
        ("linear_log_probs", "ids", torch.float64, AN_INTEGER),
    ],
)
def test_dtypes(op: str, name: str, dtype: torch.dtype, expected: str) -> None:
    sample = GOOD[op]
    message = f"{name} {expected}, got {str(dtype).removeprefix('torch.')}"
    refuses(sample, ValueError, message, **{name: sample.arguments[name].to(dtype)})


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
def test_weights_and_probabilities_of_the_wrong_dtype(op: str) -> None:
    sample = GOOD[op]
    message = f"weight {LIKE_INPUT}, got int64"
    refuses(sample, ValueError, message, weight=torch.ones(27, dtype=torch.int64))
    for dtype in (torch.int64, torch.bool, torch.complex64):
        message = f"token_weights {FLOATING}, got {str(dtype).removeprefix('torch.')}"
        refuses(sample, ValueError, message, token_weights=torch.ones(5, dtype=dtype))
    message = f"target {LIKE_INPUT}, got int64"
    refuses(sample, ValueError, message, target=torch.ones(5, 27, dtype=torch.int64))


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
    """The message is about the first argument, or the first that differs from it."""
    sample = GOOD[op]
    others = [other for other, value in sample.arguments.items() if isinstance(value, Tensor) and other != name]
    first = "embedding" if op == "mlp_cross_entropy" else next(iter(sample.arguments))
    where = sample.arguments[name].device
    for other in {"cpu", "meta"} - {device.type}:
        bad = sample.with_arguments(**{name: sample.arguments[name].to(other)})
        at_fault, expected, got = (others[0], other, where) if name == first else (name, where, other)
        message = f"{at_fault} must be on the device of {first}, {expected}, got {got}"
        for leaves in ({}, bad.leaves()):
            raises(bad, leaves, ValueError, message)


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
def test_token_weights_on_another_device(op: str) -> None:
    for other in {"cpu", "meta"} - {device.type}:
        message = f"token_weights must be on the device of input, {device}, got {other}"
        raises(GOOD[op].with_arguments(token_weights=torch.ones(5, device=other)), {}, ValueError, message)


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
    expected = "a tensor or None" if "bias" in name else "a tensor"
    raises(bad, {}, TypeError, f"{name} must be {expected}, got list")


def test_an_unknown_instruction_set() -> None:
    from charlm import _C

    before = _C.instruction_set()
    names = _C.instruction_sets()
    message = f"the instruction set must be one that this machine can run, of {names}, got 'abacus'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _C.set_instruction_set("abacus")
    with pytest.raises(TypeError, match=r"^the instruction set must be a str or None, got 512$"):
        _C.set_instruction_set(512)  # type: ignore[arg-type]
    assert _C.instruction_set() == before
