"""What callers hand to the ops: options as the op schemas have them, tensors in one dtype, and errors.

No value of a tensor is read here, and a plain call pays for a few comparisons only: what is wrong is looked for after
something has failed.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
REDUCTION_NAMES = tuple(REDUCTIONS)
HALF = (torch.bfloat16, torch.float16)  # computed in float32
_FLOATING = (torch.float32, torch.float64, *HALF)


class LossOptions(NamedTuple):
    """The options of a loss as the op schemas have them, in their order."""

    ignore_index: int
    reduction: int
    label_smoothing: float
    softcap: float
    z_loss: float


def lse_values(rows: int, options: LossOptions) -> int:
    """How many values of so many rows forward hands to backward: see csrc/bindings/schemas.cpp."""
    return 2 * rows + (options.reduction == 1)


_DEFAULTS = tuple(LossOptions(-100, code, 0.0, 0.0, 0.0) for code in REDUCTIONS.values())  # to make one takes time


class ArgumentError(ValueError, RuntimeError):
    """An argument of the wrong shape, dtype, device or range: PyTorch's own ops raise now the one and now the other."""


def loss_options(
    ignore_index: int, reduction: str, label_smoothing: float, softcap: float | None, z_loss: float
) -> LossOptions:
    """The options of a loss as the op schemas have them.

    Raises:
        TypeError: an option is a bool, or no number.
        ArgumentError: an option is out of range.
    """
    # Of the defaults nothing but the type is looked at: a tiny call would notice more.
    if type(ignore_index) is not int or (ignore_index != -100 and not -(2**63) <= ignore_index < 2**63):
        ignore_index = checked_ignore_index(ignore_index)
    code = REDUCTIONS.get(reduction) if type(reduction) is str else None
    if code is None:
        code = reduction_code(reduction)
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        label_smoothing = number("label_smoothing", "a number between 0 and 1", label_smoothing)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ArgumentError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    if type(z_loss) is not float or z_loss != 0.0:
        z_loss = number("z_loss", "a non-negative, finite number", z_loss)
        if not 0.0 <= z_loss < math.inf:
            raise ArgumentError(f"z_loss must be non-negative and finite, got {z_loss}")
    if softcap is None and ignore_index == -100 and label_smoothing == 0.0 and z_loss == 0.0:
        return _DEFAULTS[code]
    return LossOptions(ignore_index, code, label_smoothing, softcap_code(softcap), z_loss)


def keywords(options: Any) -> dict[str, Any]:
    """The options of a loss as callers have them."""
    named: dict[str, Any] = options._asdict()
    return {**named, "reduction": REDUCTION_NAMES[options.reduction], "softcap": options.softcap or None}


def reduction_code(reduction: str) -> int:
    """The number that stands for a reduction in the op schemas."""
    try:
        return REDUCTIONS[reduction]
    except (KeyError, TypeError):
        raise ArgumentError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}") from None


def softcap_code(softcap: float | None) -> float:
    """The number that stands for a softcap in the op schemas: 0 for none."""
    if softcap is None:
        return 0.0
    softcap = number("softcap", "a positive, finite number or None", softcap)
    if not 0.0 < softcap < math.inf:
        raise ArgumentError(f"softcap must be positive and finite, or None, got {softcap}")
    return softcap


def check_output_dtype(output_dtype: torch.dtype) -> None:
    """Raises unless a loss can be returned in that dtype."""
    if output_dtype not in _FLOATING:
        raise ArgumentError(
            f"output_dtype must be torch.float32, float64, bfloat16, float16 or None, got {output_dtype!r}"
        )


def check_token_weights(token_weights: Tensor, rows: Sequence[int]) -> None:
    """Raises unless these can weigh rows of that shape, in plain PyTorch."""
    if not token_weights.is_floating_point():
        raise ArgumentError(f"token_weights must have a floating-point dtype, got {token_weights.dtype}")
    if token_weights.shape != torch.Size(rows):
        raise ArgumentError(
            f"token_weights must have the shape of the row losses, {tuple(rows)}, got {tuple(token_weights.shape)}"
        )


def check_chunking(options: Any) -> None:
    """Raises unless `options` are those of torch.nn.functional.linear_cross_entropy, which torch 2.13 has."""
    kind = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if kind is None or not isinstance(options, kind):
        raise TypeError(f"options must be a torch.nn.LinearCrossEntropyOptions or None, got {options!r}")


def may_promote(logits: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether `promoted` could change or refuse anything: not where all are in the dtype of the logits, or integers."""
    return (weight is not None and weight.dtype is not logits.dtype) or (
        target.dtype is not logits.dtype and target.dtype.is_floating_point
    )


def promoted(
    logits: Sequence[Tensor | None], target: Tensor, weight: Tensor | None, *, autocast: bool
) -> tuple[Sequence[Any], Tensor, Tensor | None]:
    """Arguments of a loss in the dtype to which PyTorch promotes them: what the logits are made of, target, weight.

    Only class probabilities promote. With class indices, class weights must have the dtype of the logits. Under
    autocast both are in float32 first.
    """
    tensors = [tensor for tensor in (*logits, target, weight) if tensor is not None]
    own, *others = [torch.float32 if autocast and t.dtype in HALF else t.dtype for t in tensors]
    if not target.dtype.is_floating_point:
        if weight is not None and others[-1] != own:
            raise ArgumentError(f"weight must have the dtype of input, {_name(own)}, got {_name(weight.dtype)}")
        return logits, target, weight
    dtype = functools.reduce(torch.promote_types, others, own)
    mixed = any(tensor.dtype != tensors[0].dtype for tensor in tensors)
    # The rest, as a layer in another dtype than its input, is for the kernels to refuse.
    if not mixed or dtype not in _FLOATING or any(t is not None and t.dtype != tensors[0].dtype for t in logits):
        return logits, target, weight
    return (
        [t if t is None else t.to(dtype) for t in logits],
        target.to(dtype),
        weight if weight is None else weight.to(dtype),
    )


def complain(error: Exception, optional: Mapping[str, Any], **tensors: Any) -> None:
    """Raises what says more than `error`, which a call with these arguments has met; returns where that will do.

    Args:
        error: what was raised.
        optional: the tensors that may be None, by name.
        tensors: those that may not.
    """
    for name, value in {**tensors, **optional}.items():
        if value is None and name in optional:
            continue
        if not isinstance(value, Tensor):
            expected = "a tensor or None" if name in optional else "a tensor"
            raise TypeError(f"{name} must be {expected}, got {type(value).__name__}") from None
        if value.is_nested:
            raise ArgumentError(f"{name} must be a dense tensor, got a nested one; its values() are dense") from None
        if value.layout != torch.strided:
            raise ArgumentError(f"{name} must be a dense tensor, got one with layout {value.layout}") from None
    if type(error) is ValueError:
        raise ArgumentError(*error.args) from None


def checked_ignore_index(value: Any) -> int:
    """`value` as an integer of 64 bits.

    Raises:
        TypeError: it is a bool, or no integer.
        ArgumentError: it is out of range.
    """
    if value is None or _is_bool(value):
        raise TypeError(
            f"ignore_index must be an integer, got {value}; size_average and reduce, which PyTorch deprecates, do not "
            "exist here: say reduction='sum' or reduction='none'"
        )
    try:
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"ignore_index must be an integer, got {value!r}") from None
    if not -(2**63) <= found < 2**63:
        raise ArgumentError(f"ignore_index must fit into 64 bits, got {found}")
    return found


def number(name: str, expected: str, value: Any) -> float:
    """`value` as a float: of any type of number but bool. A string, for instance, is no number.

    Args:
        name, expected: for the error: "`name` must be `expected`, got ...".
        value: what was given.
    """
    if type(value) is float:
        return value
    if _is_bool(value) or not isinstance(value, (Real, Tensor, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError(f"{name} must be {expected}, got an integer that is too large") from None
    except (TypeError, ValueError, RuntimeError):  # a tensor of several elements, or of complex numbers
        raise TypeError(f"{name} must be {expected}, got {value!r}") from None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
