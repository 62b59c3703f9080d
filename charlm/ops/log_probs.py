"""Log-probabilities of chosen classes, entropy and more, from logits: no softmax is ever written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from charlm.ops import _dtensor, _extension, _transforms, reference  # noqa: F401  _extension registers ops
from charlm.ops._arguments import check_output_dtype, complain
from charlm.ops._autograd import apply, autocast_dtype, check_devices, needs_gradient
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

_forward = torch.ops.charlm.log_probs_forward.default
_backward = torch.ops.charlm.log_probs_backward.default


def log_probs(
    input: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    output_dtype: torch.dtype | None = None,
) -> LogProbs:
    """Log-probabilities of chosen classes, and what else a softmax gives, in one pass over the logits.

    ``log_probs[k] = z[ids[k]] - logsumexp(z)`` and ``entropy = -sum_c p[c] * log(p[c])`` per row, with
    ``z = input / temperature``, or ``softcap * tanh(input / softcap) / temperature``, and ``p = softmax(z)``.

    Args:
        input: logits (..., C), any strides; float32, float64, bfloat16 or float16 (the last two are computed in
            float32). Never written to.
        ids: classes (...), or (..., K) for K of them a row, which may repeat; any integer dtype, each in [0, C) or
            ``ignore_index``.
        temperature: positive divisor of the logits, after the soft cap.
        softcap: bounds the logits to (-softcap, softcap); None for none.
        ignore_index: an id whose log-probability and gradient are 0. A row all of whose ids are ignored does not count:
            entropy and logsumexp are 0 too, argmax is -1.
        output_dtype: dtype of the first three results; ``torch.float32`` keeps what is computed for bfloat16 and
            float16 logits.

    Returns:
        A named tuple. ``log_probs`` in the shape of ``ids``, ``entropy`` (...) and ``logsumexp`` (...), in the dtype of
        ``input``, float32 under autocast, differentiable alone and together; ``argmax`` (...) and ``rank`` (...),
        int64: the first of the most probable classes, and how many classes are more probable than the row's first id,
        -1 where that is ignored. So ``rank == 0`` is where the id would be the prediction.

    Raises:
        IndexError: an id is out of range. Not on CUDA, where nothing waits for the GPU to say so: there its
            log-probability and the gradient of its row are NaN.
        ValueError: an argument has the wrong shape, dtype, device or range. It is a RuntimeError too.
        TypeError: an argument is no tensor or no number, or a bool.
    """
    if has_torch_function_variadic(input, ids):
        found: LogProbs = handle_torch_function(
            log_probs,
            (input, ids),
            input,
            ids,
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
        autocast = autocast_dtype(input) is not None
        if autocast and _transforms.is_exporting():
            results = reference.log_probs(input, ids, **keywords(options), output_dtype=torch.float32)
        else:
            results = _call(input, ids, options)
        if output_dtype is None:
            output_dtype = results.entropy.dtype if autocast else input.dtype
        return results.to(output_dtype)
    except Exception as error:
        complain(error, {}, input=input, ids=ids)
        raise


def _call(input: Tensor, ids: Tensor, options: LogProbsOptions) -> LogProbs:
    """The results in the dtype that is computed in."""
    if type(input) is not Tensor and _dtensor.is_dtensor(input):
        return LogProbs(*_dtensor.call("log_probs", input, ids, options))
    if _transforms.is_transformed():
        return unpacked(_transforms.transformed(_OP, (input, ids), options), ids, input.shape[:-1])
    if needs_gradient(input):
        return LogProbs(*apply(_LogProbs, input, ids, options))
    return LogProbs(*_forward(input, ids, *options)[:-1])


def _packed(input: Tensor, ids: Tensor, options: LogProbsOptions) -> Tensor:
    return packed(_call(input, ids, options), input.shape[-1])


def _reference(input: Tensor, ids: Tensor, options: LogProbsOptions) -> Tensor:
    return packed(reference.log_probs(input, ids, **keywords(options)), input.shape[-1])


def _fold(mapped: Sequence[bool], size: int, tensors: _transforms.Tensors, options: LogProbsOptions) -> Tensor | None:
    """The samples as further rows."""
    input, ids = tensors
    if not mapped[0]:
        return None
    return packed_each(_call(input, ids if mapped[1] else ids.expand(size, *ids.shape), options), input.shape[-1])


_OP = _transforms.Op(_packed, _reference, _fold)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, ids: Tensor, options: LogProbsOptions) -> tuple[Tensor, ...]:
        *results, kept = _forward(input, ids, *options)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[3:])
        ctx.save_for_backward(input, ids, kept)
        ctx.options = options
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        input, ids, kept = ctx.saved_tensors
        gradients = upstream[:3]
        given = [gradient for gradient in gradients if gradient is not None]
        if not given:
            return None, None, None
        if any(map(_transforms.is_more_than_first_order, given)):
            grad_output = packed_gradients(gradients, ids, kept)
            found = _transforms.gradients(_OP, (True, False), grad_output, (input, ids), ctx.options)
            return *found, None
        return _backward(*gradients, input, ids, kept, *ctx.options), None, None


@torch.library.register_fake("charlm::log_probs_forward")
def _(input: Tensor, ids: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_devices(input=input, ids=ids)
    return fake_results(input, ids)


@torch.library.register_fake("charlm::log_probs_backward")
def _(
    log_probs_gradient: Tensor | None,
    entropy_gradient: Tensor | None,
    logsumexp_gradient: Tensor | None,
    input: Tensor,
    ids: Tensor,
    *others: Any,
) -> Tensor:
    check_devices(input=input, ids=ids)
    return torch.empty_like(input)
