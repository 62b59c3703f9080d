"""Softmax cross-entropy: the loss in one pass over the logits, its gradient while they are in cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from charlm.ops import _extension, _transforms, reference  # noqa: F401  _extension registers the ops
from charlm.ops._autograd import (
    REDUCTION_NAMES,
    apply,
    autocast_dtype,
    cast,
    check_devices,
    needs_gradient,
    reduction_code,
    scale_saved,
    softcap_code,
)

_forward = torch.ops.charlm.cross_entropy_forward.default
_backward = torch.ops.charlm.cross_entropy_backward.default


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Drop-in for :func:`torch.nn.functional.cross_entropy`, with a softcap and a z-loss.

    ``loss = lse(z) - z[target] + z_loss * lse(z)**2`` per row, with ``z = input`` or
    ``softcap * tanh(input / softcap)`` and ``lse = logsumexp``.

    Args:
        input: logits, (C,), (N, C) or (N, C, d1, ...), any strides; float32, float64, bfloat16 or float16 (the last
            two are computed in float32). Never written to.
        target: class indices, () or (1,), (N,) or (N, d1, ...), any integer dtype, each in [0, C) or
            ``ignore_index``; or class probabilities of the shape and dtype of ``input``, which may require a gradient.
        weight: weight of each class, (C,), floating point.
        ignore_index: target value whose rows have loss and gradient 0 and do not count in the mean.
        reduction: "none" (one loss a row), "mean" (weighted by ``weight[target]``) or "sum".
        label_smoothing: in [0, 1], the share of the target spread evenly over the classes.
        softcap: bounds the logits to (-softcap, softcap); None for none.
        z_loss: weight of the squared log-partition, added to every row that is not ignored.

    Returns:
        A scalar, or for "none" a tensor of the shape of class-index targets; dtype of ``input``, float32 under
        autocast. The mean over no rows is NaN, as in torch. Derivatives after the first cost what they cost there.

    Raises:
        IndexError: a target is out of range. Not on CUDA, where nothing waits for the GPU to say so: there the loss and
            the gradient of that row are NaN, and the row does not count in the mean.
        ValueError: an argument has the wrong shape, dtype, device or range.

    Source:
        Szegedy et al. 2016 (label smoothing); Gemma 2 2024 (softcap); Chowdhery et al. 2022, PaLM (z-loss).
    """
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            cross_entropy,
            (input, target, weight),
            input,
            target,
            weight,
            ignore_index,
            reduction,
            label_smoothing,
            softcap=softcap,
            z_loss=z_loss,
        )
    options = (ignore_index, reduction_code(reduction), label_smoothing, softcap_code(softcap), z_loss)
    if autocast_dtype(input) is None:
        loss = _call(input, target, weight, *options)
        return loss if loss.dtype == input.dtype else loss.to(input.dtype)
    if target.dtype != input.dtype:  # probabilities in another precision
        input, target = cast(torch.float32, input, target)
    return _call(input, target, weight, *options)


def _call(input: Tensor, target: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
    """The loss in the dtype that is computed in."""
    if _transforms.is_transformed():
        return _transforms.transformed(_OP, (input, target, weight), options)
    if weight is not None and weight.requires_grad:
        return _transforms.by_reference(_OP, (input, target, weight), options)
    if needs_gradient(input, target):
        loss: Tensor = apply(_CrossEntropy, input, target, weight, options)
        return loss
    return _forward(input, target, weight, *options, False)[0]


def _reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
) -> Tensor:
    name = REDUCTION_NAMES[reduction]
    return reference.cross_entropy(
        input, target, weight, ignore_index, name, label_smoothing, softcap=softcap or None, z_loss=z_loss
    )


def _fold(mapped: Sequence[bool], size: int, tensors: _transforms.Tensors, options: Sequence[Any]) -> Tensor | None:
    """The samples as further rows, where none has class weights of its own."""
    input, target, weight = tensors
    if not mapped[0] or mapped[2]:
        return None
    ignore_index, reduction, *others = options
    target = target if mapped[1] else target.expand(size, *target.shape)
    if input.ndim == 2:  # one row a sample
        losses = _call(input, target, weight, ignore_index, 0, *others)
    else:
        rows = _call(input.flatten(0, 1), target.flatten(0, 1), weight, ignore_index, 0, *others)
        losses = rows.unflatten(0, input.shape[:2])
    return _transforms.reduce_each(losses, target, weight, ignore_index, reduction)


_OP = _transforms.Op(_call, _reference, _fold)


def _gradient_in_forward(input: Tensor, target: Tensor) -> bool:
    """Whether forward also writes the gradient, in the one pass that has each row in cache.

    Backward is then a multiplication by the upstream gradient, or nothing where that is 1. Not for float16 and
    bfloat16: a loss scale must multiply the gradient before it is rounded, or what it should rescue is already 0. Not
    on a GPU either: to find out there that the upstream gradient is 1 takes waiting, and a multiplication another pass.
    """
    exact = input.dtype in (torch.float32, torch.float64)
    return exact and input.device.type == "cpu" and input.requires_grad and not target.requires_grad


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, options: tuple[Any, ...]) -> Tensor:
        in_forward = _gradient_in_forward(input, target)
        loss, lse, gradient = _forward(input, target, weight, *options, in_forward)
        # With the gradient in hand the arguments are kept for its derivatives alone.
        ctx.save_for_backward(input, target, weight, gradient if in_forward else lse)
        ctx.in_forward = in_forward
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight, saved = ctx.saved_tensors
        if _transforms.is_more_than_first_order(grad_output):
            wanted = ctx.needs_input_grad[:3]
            return *_transforms.gradients(_OP, wanted, grad_output, (input, target, weight), ctx.options), None
        if ctx.in_forward:
            per_row = grad_output.unsqueeze(min(1, input.ndim - 1)) if grad_output.ndim > 0 else grad_output
            return scale_saved(per_row, saved), None, None, None
        input_needs, target_needs, *_ = ctx.needs_input_grad
        input_gradient, target_gradient = _backward(
            grad_output, input, target, weight, saved, *ctx.options, input_needs, target_needs
        )
        return input_gradient if input_needs else None, target_gradient if target_needs else None, None, None


def _rows(input: Tensor) -> int:
    rows = 1
    for dim, size in enumerate(input.shape):
        rows = rows if dim == min(1, input.ndim - 1) else rows * size
    return rows


@torch.library.register_fake("charlm::cross_entropy_forward")
def _(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    compute_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_devices(input=input, target=target, weight=weight)
    class_dim = min(1, input.ndim - 1)
    row_shape = [*input.shape[:class_dim], *input.shape[class_dim + 1 :]]
    compute_dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return (
        input.new_empty(row_shape if reduction == 0 else [], dtype=compute_dtype),
        input.new_empty([2, _rows(input)], dtype=compute_dtype),
        torch.empty_like(input) if compute_gradient else input.new_empty([0]),
    )


@torch.library.register_fake("charlm::cross_entropy_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    input_gradient: bool,
    target_gradient: bool,
) -> tuple[Tensor, Tensor]:
    check_devices(input=input, target=target, weight=weight, grad_output=grad_output, lse=lse)
    return (
        torch.empty_like(input) if input_gradient else input.new_empty([0]),
        torch.empty_like(target) if target_gradient else input.new_empty([0]),
    )
