"""The output layer and its loss as one op, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear  # bound here: what is put into its place later is not meant
from torch.overrides import handle_torch_function, has_torch_function

from charlm.ops import _direct, _dtensor, _extension, _products, _transforms, reference  # noqa: F401  two register ops
from charlm.ops._arguments import (
    HALF,
    ArgumentError,
    LossOptions,
    check_chunking,
    check_output_dtype,
    complain,
    keywords,
    loss_options,
    lse_values,
    may_promote,
    promoted,
)
from charlm.ops._autograd import apply, autocast_dtype, cast, check_devices, needs_gradient
from charlm.ops._saved import NOTHING, Unread, copy_of, wanted_gradients
from charlm.ops._scaling import SUMS, scale_saved
from charlm.ops.cross_entropy import cross_entropy

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions  # torch 2.13 has it

_forward = torch.ops.charlm.linear_cross_entropy_forward.default
_backward = torch.ops.charlm.linear_cross_entropy_backward.default
# input, linear_weight, target, linear_bias, weight, token_weights
_Tensors = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    token_weights: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """``cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)`` in bounded memory.

    The logits (N, C) are computed a piece at a time, and so are their gradients; what is held beside the results is
    about 1/20 of them; on a GPU 1/16, but at least 2,048 rows, or as many as fit into 512 MiB, and in bfloat16 and
    float16 all at once where sums of the weight's gradient in float32 would take more memory. Where a gradient is
    needed and the reduction is not "none", it is computed during forward, while its piece of the logits exists, so that
    training costs three matrix products as in eager PyTorch, not four.

    Args:
        input: (..., D), N rows; float32, float64, bfloat16 or float16 (the last two are computed in float32).
        linear_weight: (C, D), dtype of ``input``; or, as in torch, (C, d1, ..., D) with ``input`` (N, D), a layer for
            each position of (N, d1, ...) losses. The logits (N, C, d1, ...) are held then.
        target: class indices (...), any integer dtype, each in [0, C) or ``ignore_index``; or class probabilities
            (..., C), which may require a gradient; with positions (N, d1, ...), or (N, C, d1, ...). Where probabilities
            and logits differ in dtype, all are promoted, as in torch.
        linear_bias: (C,), or (C, d1, ...), dtype of ``input``.
        weight: weight of each class, (C,), dtype of ``input``.
        token_weights: weight of each row, in the shape of class-index targets, any floating dtype; as in
            :func:`charlm.ops.cross_entropy`. Where they require a gradient, all logits are held.
        reduction: "none", "mean" or "sum", as in :func:`charlm.ops.cross_entropy`.
        ignore_index: target value whose rows have loss and gradient 0 and do not count in the mean; None is -100, and
            all that goes with class probabilities.
        label_smoothing: in [0, 1].
        options: how torch is to chunk its work, a ``torch.nn.LinearCrossEntropyOptions``. Taken so that calls need no
            change, and not read: the work is always done in pieces, and accumulated in float32 or float64.
        softcap: bounds the logits to (-softcap, softcap); None for none.
        z_loss: weight of the squared log-partition.
        output_dtype: dtype of the result; ``torch.float32`` keeps what is computed for bfloat16 and float16 input.

    Returns:
        A scalar, or (...) for "none"; dtype of ``input``. Under autocast the product is in the lower precision and the
        loss in float32. Derivatives after the first, and forward-mode, hold the logits as eager PyTorch does.

    Raises:
        IndexError: a target is out of range. Not on CUDA, where nothing waits for the GPU to say so: there the loss of
            that row is NaN, it does not count in the mean, and the gradients that it takes part in are NaN.
        ValueError: an argument has the wrong shape, dtype, device or range. It is a RuntimeError too.
        TypeError: an argument is no tensor or no number, or a bool.

    Source:
        Wijmans et al. 2024, Cut Your Losses in Large-Vocabulary Language Models; Hsu et al. 2024, Liger Kernel.
    """
    tensors = (input, linear_weight, target, linear_bias, weight, token_weights)
    if has_torch_function(tensors):
        return handle_torch_function(
            linear_cross_entropy,
            tensors,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            token_weights=token_weights,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
            softcap=softcap,
            z_loss=z_loss,
            output_dtype=output_dtype,
        )
    try:
        if ignore_index is None:
            ignore_index = -100
        elif target.dtype.is_floating_point:
            raise ArgumentError(
                "ignore_index must be None where target has class probabilities, which cannot be ignored"
            )
        codes = loss_options(ignore_index, reduction, label_smoothing, softcap, z_loss)
        if options is not None:
            check_chunking(options)
        if output_dtype is not None:
            check_output_dtype(output_dtype)
        if linear_weight.ndim > 2:
            return cross_entropy(
                _logits_by_position(input, linear_weight, linear_bias),
                target,
                weight,
                ignore_index,
                reduction,
                label_smoothing,
                token_weights=token_weights,
                softcap=softcap,
                z_loss=z_loss,
                output_dtype=output_dtype,
            )
        lower = autocast_dtype(input)
        if lower is None and not may_promote(input, target, weight):
            loss = _call(*tensors, codes)
        elif lower is not None and _transforms.is_exporting():
            loss = _reference(*tensors, codes)
        else:
            layer: Sequence[Any] = (input, linear_weight, linear_bias)
            layer, target, weight = promoted(
                layer if lower is None else cast(lower, *layer), target, weight, autocast=lower is not None
            )
            input, linear_weight, linear_bias = layer
            loss = _call(input, linear_weight, target, linear_bias, weight, token_weights, codes)
        if output_dtype is None and (lower is not None or input.dtype not in HALF):
            return loss
        return loss.to(output_dtype or input.dtype)
    except Exception as error:
        optional = {"linear_bias": linear_bias, "weight": weight, "token_weights": token_weights}
        complain(error, optional, input=input, linear_weight=linear_weight, target=target)
        raise


def _logits_by_position(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    """The logits (N, C, d1, ...) of a weight (C, d1, ..., D): at each position, those of a layer of its own."""
    if input.ndim != 2 or input.shape[1] != linear_weight.shape[-1]:
        raise ArgumentError(
            f"input must have shape (N, D={linear_weight.shape[-1]}) where linear_weight has more than two dimensions, "
            f"got {tuple(input.shape)}"
        )
    shape = linear_weight.shape[:-1]
    if linear_bias is not None and linear_bias.shape != shape:
        raise ArgumentError(
            f"linear_bias must have the shape of linear_weight without its last dimension, {tuple(shape)}, "
            f"got {tuple(linear_bias.shape)}"
        )
    bias = None if linear_bias is None else linear_bias.flatten()
    return linear(input, linear_weight.flatten(0, -2), bias).unflatten(1, shape)


def _call(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weights: Tensor | None,
    options: LossOptions,
) -> Tensor:
    """The loss in the dtype that is computed in."""
    tensors = (input, linear_weight, target, linear_bias, weight, token_weights)
    if type(input) is not Tensor and _dtensor.is_dtensor(input):
        return _dtensor.call("linear_cross_entropy", *tensors, options)
    if _transforms.is_transformed():
        return _transforms.transformed(_OP, tensors, options)
    if needs_gradient(weight, token_weights):
        return _transforms.by_reference(_OP, tensors, options)
    if needs_gradient(input, linear_weight, target, linear_bias):
        loss: Tensor = apply(_LinearCrossEntropy, *tensors, options)
        return loss
    return _kernel(tensors, options, (False, False, False), False)[0]


def _kernel(tensors: _Tensors, options: LossOptions, wanted: tuple[bool, bool, bool], keeps_lse: bool) -> Sequence[Any]:
    """The loss, lse, and the gradients of input, linear_weight and linear_bias; what is not wanted may be None."""
    found = None
    if tensors[5] is None and _is_small(*tensors[:2]):
        found = _direct.linear_cross_entropy_forward(*tensors[:5], options, *wanted, keeps_lse)
    return found or _forward(*tensors, *options, *wanted)


def _is_small(input: Tensor, linear_weight: Tensor) -> bool:
    """Whether a direct call may serve: of a product as many values take as long as one of a loss."""
    return linear_weight.ndim == 2 and _direct.serves(input.numel() * linear_weight.shape[0] // 8)


def _reference(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weights: Tensor | None,
    options: LossOptions,
) -> Tensor:
    named = keywords(options)
    if target.is_floating_point():
        named["ignore_index"] = None
    return reference.linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        token_weights=token_weights,
        **named,
    )


def _fold(mapped: Sequence[bool], size: int, tensors: _transforms.Tensors, options: LossOptions) -> Tensor | None:
    """The samples as further rows, where they share the layer and the class weights."""
    input, linear_weight, target, linear_bias, weight, token_weights = tensors
    if not mapped[0] or mapped[1] or mapped[3] or mapped[4]:
        return None
    target = target if mapped[2] else target.expand(size, *target.shape)
    if token_weights is not None and not mapped[5]:
        token_weights = token_weights.expand(size, *token_weights.shape)
    losses = _call(input, linear_weight, target, linear_bias, weight, token_weights, options._replace(reduction=0))
    return _transforms.reduce_each(losses, target, weight, token_weights, options)


_OP = _transforms.Op(_call, _reference, _fold)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None,
        weight: Tensor | None,
        token_weights: Tensor | None,
        options: LossOptions,
    ) -> Tensor:
        input_needs, weight_needs, target_needs, bias_needs, *_ = ctx.needs_input_grad
        # Not where rows have upstream gradients of their own; not in float16, where a loss scale must multiply a
        # gradient before it is rounded.
        ctx.in_forward = options.reduction != 0 and not target_needs and input.dtype != torch.float16
        wanted = (input_needs, weight_needs, bias_needs) if ctx.in_forward else (False, False, False)
        tensors = (input, linear_weight, target, linear_bias, weight, token_weights)
        loss, lse, *gradients = _kernel(tensors, options, wanted, not ctx.in_forward)
        gradients = [NOTHING if gradient is None else gradient for gradient in gradients]
        ctx.unread = None if torch.compiler.is_compiling() else Unread(linear_bias=linear_bias)
        if not ctx.in_forward:  # torch keeps no bias, so that it may change
            gradients = [lse, None if linear_bias is None else linear_bias.clone()]
        elif not weight_needs and ctx.unread is not None:  # nor the input of a frozen layer
            input = copy_of(input)
        ctx.save_for_backward(input, linear_weight, target, weight, token_weights, *gradients)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, linear_weight, target, weight, token_weights, *saved = ctx.saved_tensors
        input_needs, weight_needs, _, bias_needs, *_ = ctx.needs_input_grad
        needs = (input_needs, weight_needs, bias_needs)
        needed = [gradient for gradient, need in zip(saved, needs, strict=True) if need] if ctx.in_forward else []
        ignore_index = ctx.options.ignore_index
        may_overwrite = ctx.in_forward and _direct.is_plain_backward()
        if may_overwrite and _direct.scale_gradients(needed, grad_output, target, ignore_index):
            return _returned(needed, needs)
        if _transforms.is_more_than_first_order(grad_output):
            tensors = (input, linear_weight, target, *ctx.unread.as_they_were(), weight, token_weights)
            wanted = wanted_gradients(ctx, tensors)
            return *_transforms.gradients(_OP, wanted, grad_output, tensors, ctx.options), None
        if not ctx.in_forward:
            lse, bias = saved
            wanted = wanted_gradients(ctx, (input, linear_weight, target, bias))
            input_wanted, weight_wanted, target_wanted, bias_wanted = wanted
            which = (input_wanted, weight_wanted, bias_wanted, target_wanted)
            tensors = (grad_output, input, linear_weight, target, bias, weight)
            found = None
            if not target_wanted and token_weights is None and _is_small(input, linear_weight):
                found = _direct.linear_cross_entropy_backward(*tensors, lse, ctx.options, *which[:3])
            of_input, of_weight, of_bias, of_target = (
                gradient if want else None
                for gradient, want in zip(
                    found or _backward(*tensors, token_weights, lse, *ctx.options, *which), which, strict=True
                )
            )
            return of_input, of_weight, of_target, of_bias, None, None, None
        classes = None if target.is_floating_point() else target
        if classes is None and target.numel() == 0:  # no rows: all of it is 0
            grad_output = torch.zeros_like(grad_output)
        class_dim = input.ndim - 1 if input_needs else SUMS
        return _returned(scale_saved(grad_output, needed, classes, ignore_index, class_dim), needs)


def _returned(needed: list[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """What backward returns where forward has computed the gradients of input, linear_weight and linear_bias."""
    gradients = iter(needed)
    of_input, of_weight, of_bias = (next(gradients) if need else None for need in needs)
    return of_input, of_weight, None, of_bias, None, None, None


def _wanted(like: Tensor | None, wanted: bool, input: Tensor) -> Tensor:
    if wanted and like is not None:
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    return input.new_empty([0])


@torch.library.register_fake("charlm::linear_cross_entropy_forward")
def _(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weights: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *options, input_gradient, weight_gradient, bias_gradient = others
    check_devices(
        input=input,
        linear_weight=linear_weight,
        target=target,
        linear_bias=linear_bias,
        weight=weight,
        token_weights=token_weights,
    )
    compute_dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    rows = 1
    for size in input.shape[:-1]:
        rows = rows * size
    return (
        input.new_empty(input.shape[:-1] if LossOptions(*options).reduction == 0 else [], dtype=compute_dtype),
        input.new_empty([lse_values(rows, LossOptions(*options))], dtype=compute_dtype),
        _wanted(input, input_gradient, input),
        _wanted(linear_weight, weight_gradient, input),
        input.new_empty([linear_weight.shape[0] if bias_gradient else 0]),
    )


@torch.library.register_fake("charlm::linear_cross_entropy_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weights: Tensor | None,
    lse: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, input_gradient, weight_gradient, bias_gradient, target_gradient = others
    check_devices(
        input=input,
        linear_weight=linear_weight,
        target=target,
        linear_bias=linear_bias,
        weight=weight,
        token_weights=token_weights,
        lse=lse,
    )
    return (
        _wanted(input, input_gradient, input),
        _wanted(linear_weight, weight_gradient, input),
        input.new_empty([linear_weight.shape[0] if bias_gradient else 0]),
        _wanted(target, target_gradient, input),
    )
