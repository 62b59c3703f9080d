"""Log-probabilities of chosen classes, entropy and more, of an output layer whose logits are never held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from charlm.ops import _dtensor, _extension, _products, _transforms, reference  # noqa: F401  two register ops
from charlm.ops._arguments import check_output_dtype, complain
from charlm.ops._autograd import apply, autocast_dtype, cast, check_devices, needs_gradient
from charlm.ops._log_probs import (
    LogProbs,
    LogProbsOptions,
    fake_results,
    keywords,
    log_probs_options,
    packed,
    packed_each,
    packed_gradients,
    unpacked,
)
from charlm.ops._saved import Unread, wanted_gradients
from charlm.ops._scaling import graph_is_kept

_forward = torch.ops.charlm.linear_log_probs_forward.default
_backward = torch.ops.charlm.linear_log_probs_backward.default
_backward_of_kept = torch.ops.charlm.linear_log_probs_backward_.default


def linear_log_probs(
    input: Tensor,
    linear_weight: Tensor,
    ids: Tensor,
    *,
    linear_bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    output_dtype: torch.dtype | None = None,
) -> LogProbs:
    """``log_probs(F.linear(input, linear_weight, linear_bias), ids, ...)`` in bounded memory.

    What policy gradients, preference tuning and distillation take from an output layer. The logits (N, C) are computed
    a piece at a time, in forward and again in backward: 1/40 of them, or 1/20 where there are fewer than 10,240
    classes; on a GPU as in :func:`charlm.ops.linear_cross_entropy`. On the CPU, where N <= D <= 4 * N and the weight
    requires a gradient, forward leaves those that fit in memory for that gradient, and backward saves their product.

    Args:
        input: (..., D), N rows; float32, float64, bfloat16 or float16 (the last two are computed in float32).
        linear_weight: (C, D), dtype of ``input``.
        ids: classes (...), or (..., K) for K of them a row, which may repeat; any integer dtype, each in [0, C) or
            ``ignore_index``.
        linear_bias: (C,), dtype of ``input``.
        temperature, softcap, ignore_index, output_dtype: as in :func:`charlm.ops.log_probs`.

    Returns:
        The named tuple of :func:`charlm.ops.log_probs`: ``log_probs`` in the shape of ``ids``, ``entropy`` (...) and
        ``logsumexp`` (...), in the dtype of ``input``; ``argmax`` (...) and ``rank`` (...), int64. Under autocast the
        product is in the lower precision and the results in float32. Derivatives after the first, and forward-mode,
        hold the logits as eager PyTorch does.

    Raises:
        IndexError: an id is out of range. Not on CUDA, where nothing waits for the GPU to say so: there its
            log-probability, and the gradients that its row takes part in, are NaN.
        ValueError: an argument has the wrong shape, dtype, device or range. It is a RuntimeError too.
        TypeError: an argument is no tensor or no number, or a bool.

    Source:
        Hsu et al. 2024, Liger Kernel, arXiv:2410.10989, section 3.2, for the loss of a layer in pieces.
    """
    if has_torch_function_variadic(input, linear_weight, ids, linear_bias):
        found: LogProbs = handle_torch_function(
            linear_log_probs,
            (input, linear_weight, ids, linear_bias),
            input,
            linear_weight,
            ids,
            linear_bias=linear_bias,
            temperature=temperature,
            softcap=softcap,
            ignore_index=ignore_index,
            output_dtype=output_dtype,
        )
        return found
    try:
        options = log_probs_options(ignore_index, temperature, softcap)
        if output_dtype is not None:
            check_output_dtype(output_dtype)
        lower = autocast_dtype(input)
        if lower is None:
            results = _call(input, linear_weight, ids, linear_bias, options)
        elif _transforms.is_exporting():
            results = reference.linear_log_probs(
                input, linear_weight, ids, linear_bias=linear_bias, **keywords(options), output_dtype=torch.float32
            )
        else:
            layer = cast(lower, input, linear_weight, linear_bias)
            results = _call(layer[0], layer[1], ids, layer[2], options)
        if output_dtype is None:
            output_dtype = input.dtype if lower is None else results.entropy.dtype
        return results.to(output_dtype)
    except Exception as error:
        complain(error, {"linear_bias": linear_bias}, input=input, linear_weight=linear_weight, ids=ids)
        raise


def _call(
    input: Tensor, linear_weight: Tensor, ids: Tensor, linear_bias: Tensor | None, options: LogProbsOptions
) -> LogProbs:
    """The results in the dtype that is computed in."""
    tensors = (input, linear_weight, ids, linear_bias)
    if type(input) is not Tensor and _dtensor.is_dtensor(input):
        return LogProbs(*_dtensor.call("linear_log_probs", *tensors, options))
    if _transforms.is_transformed():
        return unpacked(_transforms.transformed(_OP, tensors, options), ids, input.shape[:-1])
    if needs_gradient(input, linear_weight, linear_bias):
        return LogProbs(*apply(_LinearLogProbs, *tensors, options))
    return LogProbs(*_forward(*tensors, *options, False)[:-2])


def _packed(
    input: Tensor, linear_weight: Tensor, ids: Tensor, linear_bias: Tensor | None, options: LogProbsOptions
) -> Tensor:
    return packed(_call(input, linear_weight, ids, linear_bias, options), linear_weight.shape[0])


def _reference(
    input: Tensor, linear_weight: Tensor, ids: Tensor, linear_bias: Tensor | None, options: LogProbsOptions
) -> Tensor:
    found = reference.linear_log_probs(input, linear_weight, ids, linear_bias=linear_bias, **keywords(options))
    return packed(found, linear_weight.shape[0])


def _fold(mapped: Sequence[bool], size: int, tensors: _transforms.Tensors, options: LogProbsOptions) -> Tensor | None:
    """The samples as further rows, where they share the layer."""
    input, linear_weight, ids, linear_bias = tensors
    if not mapped[0] or mapped[1] or mapped[3]:
        return None
    ids = ids if mapped[2] else ids.expand(size, *ids.shape)
    return packed_each(_call(input, linear_weight, ids, linear_bias, options), linear_weight.shape[0])


def _is_worth_keeping(input: Tensor) -> bool:
    """Whether forward is to leave logits in the memory that the weight's gradient will have, which saves backward a
    product, or in 16 bits, where N > D / 2, a part of one: not where most do not fit into that, nor where it is many
    times as large as they are. Kernels for GPUs keep none.
    """
    if torch.compiler.is_compiling() or not input.is_cpu or input.ndim == 0:
        return False
    rows, features = math.prod(input.shape[:-1]), input.shape[-1]
    return 0 < rows <= features <= 4 * rows


_OP = _transforms.Op(_packed, _reference, _fold)


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        ids: Tensor,
        linear_bias: Tensor | None,
        options: LogProbsOptions,
    ) -> tuple[Tensor, ...]:
        keeps_logits = ctx.needs_input_grad[1] and _is_worth_keeping(input)
        *results, kept, logits = _forward(input, linear_weight, ids, linear_bias, *options, keeps_logits)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[3:])
        ctx.unread = None if torch.compiler.is_compiling() else Unread(linear_bias=linear_bias)
        bias = None if linear_bias is None else linear_bias.clone()  # torch keeps none, so that it may change
        ctx.save_for_backward(input, linear_weight, ids, bias, kept, logits)
        ctx.options = options
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        input, linear_weight, ids, bias, kept, logits = ctx.saved_tensors
        gradients = upstream[:3]
        given = [gradient for gradient in gradients if gradient is not None]
        if not given:
            return None, None, None, None, None
        if any(map(_transforms.is_more_than_first_order, given)):
            tensors = (input, linear_weight, ids, *ctx.unread.as_they_were())
            grad_output = packed_gradients(gradients, ids, kept)
            wanted = wanted_gradients(ctx, tensors)
            return *_transforms.gradients(_OP, wanted, grad_output, tensors, ctx.options), None
        input_wanted, weight_wanted, _, bias_wanted = wanted_gradients(ctx, (input, linear_weight, ids, bias))
        which = (input_wanted, weight_wanted, bias_wanted)
        if logits.numel() == 0:
            found = _backward(*gradients, input, linear_weight, ids, bias, kept, *ctx.options, *which)
        else:
            logits = logits.clone() if graph_is_kept() else logits.detach()
            of_input, of_bias = _backward_of_kept(
                *gradients, input, linear_weight, ids, bias, kept, logits, *ctx.options, *which
            )
            found = of_input, logits, of_bias
        of_input, of_weight, of_bias = (gradient if want else None for gradient, want in zip(found, which, strict=True))
        return of_input, of_weight, None, of_bias, None


@torch.library.register_fake("charlm::linear_log_probs_forward")
def _(
    input: Tensor, linear_weight: Tensor, ids: Tensor, linear_bias: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    check_devices(input=input, linear_weight=linear_weight, ids=ids, linear_bias=linear_bias)
    results = fake_results(input, ids)
    return *results, input.new_empty(linear_weight.shape if options[-1] else [0])


@torch.library.register_fake("charlm::linear_log_probs_backward")
def _(
    log_probs_gradient: Tensor | None,
    entropy_gradient: Tensor | None,
    logsumexp_gradient: Tensor | None,
    input: Tensor,
    linear_weight: Tensor,
    ids: Tensor,
    linear_bias: Tensor | None,
    kept: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *_, input_gradient, weight_gradient, bias_gradient = others
    check_devices(input=input, linear_weight=linear_weight, ids=ids, linear_bias=linear_bias, kept=kept)
    return (
        input.new_empty(input.shape if input_gradient else [0]),
        input.new_empty(linear_weight.shape if weight_gradient else [0]),
        input.new_empty([linear_weight.shape[0] if bias_gradient else 0]),
    )


@torch.library.register_fake("charlm::linear_log_probs_backward_")
def _(
    log_probs_gradient: Tensor | None,
    entropy_gradient: Tensor | None,
    logsumexp_gradient: Tensor | None,
    input: Tensor,
    linear_weight: Tensor,
    ids: Tensor,
    linear_bias: Tensor | None,
    kept: Tensor,
    logits: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:
    *_, input_gradient, _, bias_gradient = others
    check_devices(input=input, linear_weight=linear_weight, ids=ids, linear_bias=linear_bias, kept=kept, logits=logits)
    return (
        input.new_empty(input.shape if input_gradient else [0]),
        input.new_empty([linear_weight.shape[0] if bias_gradient else 0]),
    )
