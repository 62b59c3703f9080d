"""Softmax cross-entropy: the loss in one pass over the logits, its gradient while they are in cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from charlm.ops import _direct, _dtensor, _extension, _transforms, reference  # noqa: F401  _extension registers ops
from charlm.ops._arguments import (
    HALF,
    LossOptions,
    check_output_dtype,
    complain,
    keywords,
    loss_options,
    lse_values,
    may_promote,
    promoted,
)
from charlm.ops._autograd import apply, autocast_dtype, check_devices, needs_gradient
from charlm.ops._saved import Version, wanted_gradients
from charlm.ops._scaling import scale_saved

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
    token_weights: Tensor | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """Drop-in for :func:`torch.nn.functional.cross_entropy`, with weights of rows, a softcap and a z-loss.

    ``loss = lse(z) - z[target] + z_loss * lse(z)**2`` per row, with ``z = input`` or
    ``softcap * tanh(input / softcap)`` and ``lse = logsumexp``.

    Args:
        input: logits, (C,), (N, C) or (N, C, d1, ...), any strides; float32, float64, bfloat16 or float16 (the last
            two are computed in float32). Never written to.
        target: class indices, () or (1,), (N,) or (N, d1, ...), any integer dtype, each in [0, C) or
            ``ignore_index``; or class probabilities of the shape of ``input``, which may require a gradient. Where
            probabilities and logits differ in dtype, all are promoted, as in torch.
        weight: weight of each class, (C,), dtype of ``input``.
        ignore_index: target value whose rows have loss and gradient 0 and do not count in the mean.
        reduction: "none" (one loss a row), "mean" (weighted by ``weight[target]``) or "sum".
        label_smoothing: in [0, 1], the share of the target spread evenly over the classes.
        token_weights: weight of each row, in the shape of class-index targets: any finite numbers, such as 0 and 1, or
            the advantages of policy gradients, in any floating dtype, which is not promoted. The loss of a row, penalty
            included, is multiplied by it, and "mean" divides by the sum of ``token_weights * weight[target]``, or, with
            class probabilities, of ``token_weights``. That of an ignored row is not read. Where they require a
            gradient, all is computed in plain PyTorch.
        softcap: bounds the logits to (-softcap, softcap); None for none.
        z_loss: weight of the squared log-partition, added to every row that is not ignored.
        output_dtype: dtype of the result; ``torch.float32`` keeps what is computed for bfloat16 and float16 logits.

    Returns:
        A scalar, or for "none" a tensor of the shape of class-index targets; dtype of ``input``, float32 under
        autocast. The mean over no rows is NaN, as in torch. Derivatives after the first cost what they cost there.

    Raises:
        IndexError: a target is out of range. Not on CUDA, where nothing waits for the GPU to say so: there the loss and
            the gradient of that row are NaN, and the row does not count in the mean.
        ValueError: an argument has the wrong shape, dtype, device or range. It is a RuntimeError too.
        TypeError: an argument is no tensor or no number, or a bool, as torch's deprecated ``size_average`` is.

    Source:
        Szegedy et al. 2016 (label smoothing); Gemma 2 2024 (softcap); Chowdhery et al. 2022, PaLM (z-loss).
    """
    if has_torch_function_variadic(input, target, weight, token_weights):
        return handle_torch_function(
            cross_entropy,
            (input, target, weight, token_weights),
            input,
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
    try:
        options = loss_options(ignore_index, reduction, label_smoothing, softcap, z_loss)
        if output_dtype is not None:
            check_output_dtype(output_dtype)
        autocast = autocast_dtype(input) is not None
        if autocast and _transforms.is_exporting():
            loss = _reference(input, target, weight, token_weights, options)
        else:
            if may_promote(input, target, weight):
                (input,), target, weight = promoted((input,), target, weight, autocast=autocast)
            if output_dtype is None and not autocast:
                output_dtype = input.dtype
            loss = _call(input, target, weight, token_weights, options, output_dtype)
        return loss if output_dtype is None or loss.dtype is output_dtype else loss.to(output_dtype)
    except Exception as error:
        complain(error, {"weight": weight, "token_weights": token_weights}, input=input, target=target)
        raise


def _call(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    token_weights: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The loss in the dtype that is computed in, or, where that costs nothing further, already in `dtype`."""
    if type(input) is not Tensor and _dtensor.is_dtensor(input):
        return _dtensor.call("cross_entropy", input, target, weight, token_weights, options)
    if _transforms.is_transformed():
        return _transforms.transformed(_OP, (input, target, weight, token_weights), options)
    if needs_gradient(weight, token_weights):
        return _transforms.by_reference(_OP, (input, target, weight, token_weights), options)
    if needs_gradient(input, target):
        loss: Tensor = apply(_CrossEntropy, input, target, weight, token_weights, options, dtype)[0]
        return loss
    return _kernel(input, target, weight, token_weights, options, False, False, dtype)[0]


def _kernel(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    token_weights: Tensor | None,
    options: LossOptions,
    keeps_lse: bool,
    compute_gradient: bool,
    dtype: torch.dtype | None,
) -> Sequence[Any]:
    """The loss, in `dtype` if that is given, what is kept of it, and the gradient; None for what a small call lacks."""
    found = None
    if token_weights is None and _direct.serves(input.numel()):
        rounds = dtype is input.dtype
        found = _direct.cross_entropy_forward(input, target, weight, options, keeps_lse, compute_gradient, rounds)
    loss, kept, gradient = found or _forward(input, target, weight, token_weights, *options, compute_gradient)
    return loss if dtype is None or loss.dtype is dtype else loss.to(dtype), kept, gradient


def _reference(
    input: Tensor, target: Tensor, weight: Tensor | None, token_weights: Tensor | None, options: LossOptions
) -> Tensor:
    if not target.is_floating_point():  # PyTorch's derivatives of an ignored row are 0 times what is there
        ignored = target == options.ignore_index
        ignored = ignored.unsqueeze(1) if input.ndim > 1 else ignored.reshape(1)
        input = input.masked_fill(ignored, 0.0)
    return reference.cross_entropy(input, target, weight, token_weights=token_weights, **keywords(options))


def _fold(mapped: Sequence[bool], size: int, tensors: _transforms.Tensors, options: LossOptions) -> Tensor | None:
    """The samples as further rows, where none has class weights of its own."""
    input, target, weight, token_weights = tensors
    if not mapped[0] or mapped[2]:
        return None
    of_rows = options._replace(reduction=0)
    target = target if mapped[1] else target.expand(size, *target.shape)
    if token_weights is not None and not mapped[3]:
        token_weights = token_weights.expand(size, *token_weights.shape)
    if input.ndim == 2:  # one row a sample
        losses = _call(input, target, weight, token_weights, of_rows)
    else:
        of_tokens = None if token_weights is None else token_weights.flatten(0, 1)
        rows = _call(input.flatten(0, 1), target.flatten(0, 1), weight, of_tokens, of_rows)
        losses = rows.unflatten(0, input.shape[:2])
    return _transforms.reduce_each(losses, target, weight, token_weights, options)


_OP = _transforms.Op(_call, _reference, _fold)
_EXACT = (torch.float32, torch.float64)


def _gradient_in_forward(input: Tensor, target: Tensor, token_weights: Tensor | None, options: LossOptions) -> bool:
    """Whether forward also writes the gradient, in the one pass that has each row in cache.

    Backward is then a multiplication by the upstream gradient, or nothing where that is 1. Not in float16: a loss scale
    must multiply the gradient before it is rounded, or what it should rescue is already 0. Not on a GPU: to find out
    there that the upstream gradient is 1 takes waiting, and a multiplication another pass. And in bfloat16 not with
    options whose second derivatives need the logits beside the gradient: backward has the gradient from these alone.
    """
    return (
        (input.dtype in _EXACT or (input.dtype is torch.bfloat16 and _is_invertible(options, token_weights)))
        and input.is_cpu
        and input.requires_grad
        and not target.requires_grad
    )


class _CrossEntropy(torch.autograd.Function):
    """Its second result, where forward computes the gradient, is that gradient; to autograd it stands for the logits.

    That is how second derivatives reach the logits, which are not kept: one tensor of their size is, not two. What is
    sent back to the stand-in is passed on to the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        token_weights: Tensor | None,
        options: LossOptions,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.in_forward = in_forward = _gradient_in_forward(input, target, token_weights, options)
        arguments = (target, weight, token_weights)
        if in_forward:
            loss, kept, gradient = _kernel(input, *arguments, options, False, True, dtype)
            if _is_invertible(options, token_weights) or torch.compiler.is_compiling():
                ctx.save_for_backward(gradient, *arguments, kept if gradient.dtype is torch.bfloat16 else None)
            else:
                ctx.input_version = Version(input)
                ctx.save_for_backward(gradient, *arguments, input.data)
        else:
            loss, lse, _ = _kernel(input, *arguments, options, True, False, dtype)
            ctx.save_for_backward(input, *arguments, lse)
            gradient = None
        return loss, gradient

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, of_stand_in: Tensor | None = None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return of_stand_in, None, None, None, None, None
        saved = ctx.saved_tensors  # once: checkpointing computes them again at each reading
        if of_stand_in is None and _direct.is_plain_backward():
            of_input = _direct_gradient(ctx, grad_output, *saved)
            if of_input is not None:
                return of_input, None, None, None, None, None
        if _transforms.is_more_than_first_order(grad_output):
            arguments = (_logits(ctx, *saved) if ctx.in_forward else saved[0], *saved[1:4])
            wanted = wanted_gradients(ctx, arguments)
            if grad_output.dtype in HALF:  # the loss was rounded
                grad_output = grad_output.float()
            found = _transforms.gradients(_OP, wanted, grad_output, arguments, ctx.options)
            if of_stand_in is not None:
                found[0] = of_stand_in if found[0] is None else found[0] + of_stand_in
            return *found, None, None
        if ctx.in_forward:
            gradient, target = saved[0].detach(), saved[1]
            kept = None if target.is_floating_point() else target
            (gradient,) = scale_saved(grad_output, [gradient], kept, ctx.options.ignore_index, _class_dim(gradient))
            return gradient if of_stand_in is None else gradient + of_stand_in, None, None, None, None, None
        input_wanted, target_wanted, *_ = wanted_gradients(ctx, saved[:4])
        of_input, of_target = _backward(grad_output, *saved, *ctx.options, input_wanted, target_wanted)
        return of_input if input_wanted else None, of_target if target_wanted else None, None, None, None, None


def _direct_gradient(
    ctx: Any,
    grad_output: Tensor,
    first: Tensor,
    target: Tensor,
    weight: Tensor | None,
    token_weights: Tensor | None,
    kept: Tensor | None,
) -> Tensor | None:
    """The gradient of the logits from what was saved, where it takes no op."""
    if ctx.in_forward:
        gradient = first.detach()
        is_scaled = _direct.scale_gradients([gradient], grad_output, target, ctx.options.ignore_index)
        return gradient if is_scaled else None
    if ctx.needs_input_grad[1] or token_weights is not None or kept is None or first.numel() > _direct.SMALL:
        return None
    return _direct.cross_entropy_backward(grad_output, first, target, weight, kept, ctx.options)


def _logits(
    ctx: Any,
    stand_in: Tensor,
    target: Tensor,
    weight: Tensor | None,
    token_weights: Tensor | None,
    kept: Tensor | None,
) -> Tensor:
    """The logits as a function of their stand-in; kept: the log-probabilities of the targets, or the logits."""
    gradient = stand_in.detach()
    if _is_invertible(ctx.options, token_weights):
        input = _logits_of(gradient, target, weight, kept, ctx.options)
    else:
        assert kept is not None
        input = kept
        ctx.input_version.check("input")
    with torch.enable_grad():  # also where nobody differentiates further, but maps over backward
        return input + (stand_in - gradient).nan_to_num()  # the sum is the logits: what is added is 0


def _is_invertible(options: LossOptions, token_weights: Tensor | None) -> bool:
    """Whether logits follow from their gradient, but for a constant a row, on which no derivative depends.

    Not from one that a weight of 0 has multiplied.
    """
    return options.softcap == 0.0 and options.z_loss == 0.0 and token_weights is None


def _logits_of(
    gradient: Tensor, target: Tensor, weight: Tensor | None, target_log_probability: Tensor | None, options: LossOptions
) -> Tensor:
    """Logits with this gradient, which is (sum(a) softmax(z) - a) / denominator in a row, with a as in
    csrc/kernels/cross_entropy.h.

    A gradient in bfloat16 says little about a probability near 1, or about a small one of the target, from which 1 was
    subtracted: the latter is given, the former is what the others leave.
    """
    smoothing = options.label_smoothing
    dim, classes = _class_dim(gradient), gradient.shape[_class_dim(gradient)]
    gradient = gradient.float() if gradient.dtype in HALF else gradient
    weights = gradient.new_ones(classes) if weight is None else weight.to(gradient.dtype)
    spread = smoothing / max(classes, 1)
    index = None
    if target.is_floating_point():
        kept = gradient.new_ones((), dtype=torch.bool)
        a = (1.0 - smoothing) * target + spread
        denominator = gradient.new_tensor(_rows(gradient))
    else:
        kept = (target != options.ignore_index).unsqueeze(dim)
        index = target.long().unsqueeze(dim).where(kept, 0)
        a = torch.full_like(gradient, spread).scatter_add_(
            dim, index, torch.full_like(index, 1.0 - smoothing, dtype=gradient.dtype)
        )
        denominator = torch.where(kept, weights[index], 0.0).sum()
    a = a * weights.view(-1, *[1] * (gradient.ndim - 1 - dim))
    total = a.sum(dim, keepdim=True)
    if options.reduction == 1:
        gradient = gradient * denominator
    probabilities = (gradient + a) / total
    if target_log_probability is not None and classes > 1:
        if index is not None:
            probabilities.scatter_(dim, index, target_log_probability.view(index.shape).exp())
        largest = probabilities.argmax(dim, keepdim=True)
        rest = 1.0 - probabilities.scatter(dim, largest, 0.0).sum(dim, keepdim=True)
        probabilities.scatter_(dim, largest, torch.where(rest > 0.5, rest, probabilities.gather(dim, largest)))
    # A row that does not count, or whose weights are 0, has no derivatives, whatever its logits.
    probabilities = torch.where(kept & (total != 0.0), probabilities, 1.0)
    # Far below all others: what is 0 stays 0.
    return probabilities.log().where(probabilities > 0.0, -1e5)


def _class_dim(input: Tensor) -> int:
    return min(1, input.ndim - 1)


def _rows(input: Tensor) -> int:
    rows = 1
    for dim, size in enumerate(input.shape):
        rows = rows if dim == _class_dim(input) else rows * size
    return rows


@torch.library.register_fake("charlm::cross_entropy_forward")
def _(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    token_weights: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *options, compute_gradient = others
    check_devices(input=input, target=target, weight=weight, token_weights=token_weights)
    class_dim = _class_dim(input)
    row_shape = [*input.shape[:class_dim], *input.shape[class_dim + 1 :]]
    compute_dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return (
        input.new_empty(row_shape if LossOptions(*options).reduction == 0 else [], dtype=compute_dtype),
        input.new_empty(
            [_rows(input) if compute_gradient and input.is_cpu else lse_values(_rows(input), LossOptions(*options))],
            dtype=compute_dtype,
        ),
        torch.empty_like(input) if compute_gradient else input.new_empty([0]),
    )


@torch.library.register_fake("charlm::cross_entropy_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    token_weights: Tensor | None,
    lse: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:
    *_, input_gradient, target_gradient = others
    check_devices(
        input=input, target=target, weight=weight, token_weights=token_weights, grad_output=grad_output, lse=lse
    )
    return (
        torch.empty_like(input) if input_gradient else input.new_empty([0]),
        torch.empty_like(target) if target_gradient else input.new_empty([0]),
    )
