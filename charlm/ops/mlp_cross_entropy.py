"""The Bengio/makemore network and its loss as one op: each distinct context is computed once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from charlm.ops import _direct, _dtensor, _extension, _products, _transforms, reference  # noqa: F401  two register ops
from charlm.ops._arguments import HALF, LossOptions, check_output_dtype, complain, keywords, loss_options
from charlm.ops._autograd import apply, autocast_dtype, cast, check_devices, needs_gradient
from charlm.ops._saved import Unread, wanted_gradients
from charlm.ops._scaling import SUMS, scale_saved

_forward = torch.ops.charlm.mlp_cross_entropy_forward.default
_backward = torch.ops.charlm.mlp_cross_entropy_backward.default


def mlp_cross_entropy(
    ids: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    softcap: float | None = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """Cross-entropy of ``weight2 @ tanh(weight1 @ concat(embedding[ids]) + bias1) + bias2``, all in one op.

    Equal to ``linear_cross_entropy(embedding_linear(ids, embedding, weight1, bias1), weight2, target,
    linear_bias=bias2, ...)`` with the same options. Neither hidden states nor logits are kept. On the CPU, rows of
    ``ids`` that are equal share one forward and one backward pass, unless rows are few and parameters many.

    Args:
        ids: (..., T), any integer dtype and any strides, values in [0, V).
        target: (...), any integer dtype, each in [0, V) or ``ignore_index``.
        embedding: (V, D); float32, float64, bfloat16 or float16 (the last two are computed in float32).
        weight1: (H, T*D); columns t*D to (t+1)*D act on position t.
        bias1: (H,) or None.
        weight2: (V, H).
        bias2: (V,) or None.
        reduction: "none" (one loss an example), "mean" or "sum".
        ignore_index: target value whose examples have loss and gradient 0 and do not count in the mean.
        softcap: bounds the logits to (-softcap, softcap); None for none.
        output_dtype: dtype of the result; ``torch.float32`` keeps what is computed for a bfloat16 or float16 model.

    Returns:
        A scalar, or for "none" the losses in the shape of ``target``; dtype of ``embedding``. The mean over no examples
        is NaN, as in torch. Under autocast the products are in the lower precision and the loss in float32. Derivatives
        after the first, and forward-mode, hold hidden states and logits as eager PyTorch does.

    Raises:
        IndexError: an id or a target is out of range. Not on CUDA, where nothing waits for the GPU to say so: there the
            loss of that row is NaN, and so are the gradients that it takes part in.
        ValueError: an argument has the wrong shape, dtype, device or range. It is a RuntimeError too.
        TypeError: an argument is no tensor or no number, or a bool.

    Source:
        Bengio et al. 2003, "A Neural Probabilistic Language Model", section 2, without direct connections.
    """
    tensors = (ids, target, embedding, weight1, bias1, weight2, bias2)
    if has_torch_function(tensors):
        return handle_torch_function(
            mlp_cross_entropy,
            tensors,
            *tensors,
            reduction=reduction,
            ignore_index=ignore_index,
            softcap=softcap,
            output_dtype=output_dtype,
        )
    try:
        options = loss_options(ignore_index, reduction, 0.0, softcap, 0.0)
        if output_dtype is not None:
            check_output_dtype(output_dtype)
        lower = autocast_dtype(embedding)
        if lower is None:
            loss = _call(*tensors, options)
        elif _transforms.is_exporting():
            loss = _reference(*tensors, options)
        else:
            loss = _OP.call(*cast(lower, *tensors), options)
        if output_dtype is None and (lower is not None or embedding.dtype not in HALF):
            return loss
        return loss.to(output_dtype or embedding.dtype)
    except Exception as error:
        needed = {"ids": ids, "target": target, "embedding": embedding, "weight1": weight1, "weight2": weight2}
        complain(error, {"bias1": bias1, "bias2": bias2}, **needed)
        raise


def _call(
    ids: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    options: LossOptions,
) -> Tensor:
    """The loss in the dtype that is computed in."""
    tensors = (ids, target, embedding, weight1, bias1, weight2, bias2)
    if type(ids) is not Tensor and _dtensor.is_dtensor(ids):
        return _dtensor.call("mlp_cross_entropy", *tensors, options)
    if _transforms.is_transformed():
        return _transforms.transformed(_OP, tensors, options)
    if needs_gradient(embedding, weight1, bias1, weight2, bias2):
        loss: Tensor = apply(_MlpCrossEntropy, *tensors, options)
        return loss
    return _forward(*tensors, *_of_schema(options), False)[0]


def _of_schema(options: LossOptions) -> tuple[int, int, float]:
    return options.ignore_index, options.reduction, options.softcap


def _reference(*arguments: Any) -> Tensor:
    *tensors, options = arguments
    named = keywords(options)
    del named["label_smoothing"], named["z_loss"]
    return reference.mlp_cross_entropy(*tensors, **named)


def _fold(mapped: Sequence[bool], size: int, tensors: _transforms.Tensors, options: LossOptions) -> Tensor | None:
    """The samples as further examples, where they share the parameters."""
    ids, target, *parameters = tensors
    if any(mapped[2:]):
        return None
    ids = ids if mapped[0] else ids.expand(size, *ids.shape)
    target = target if mapped[1] else target.expand(size, *target.shape)
    losses = _OP.call(ids, target, *parameters, options._replace(reduction=0))
    return _transforms.reduce_each(losses, target, None, None, options)


_OP = _transforms.Op(_call, _reference, _fold)


class _MlpCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        target: Tensor,
        embedding: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        options: LossOptions,
    ) -> Tensor:
        # A single loss has gradients that only its upstream gradient scales: they come with the one forward pass. Not
        # in float16, where a loss scale must multiply them before they are rounded.
        ctx.in_forward = options.reduction != 0 and embedding.dtype != torch.float16
        arguments = (ids, target, embedding, weight1, bias1, weight2, bias2)
        found = None
        if ctx.in_forward and weight1.ndim == 2 and _direct.serves(ids.numel() * weight1.shape[0]):
            found = _direct.mlp_cross_entropy_forward(*arguments, options)
        loss, *gradients = found or _forward(*arguments, *_of_schema(options), ctx.in_forward)
        ctx.unread = None
        if not torch.compiler.is_compiling():
            ctx.unread = Unread(embedding=embedding, bias1=bias1, bias2=bias2)
        if not ctx.in_forward:  # torch keeps what it picked from the table, and no bias: all of them may change
            gradients = [None if p is None else p.clone() for p in (embedding, bias1, bias2)]
        ctx.save_for_backward(ids, target, weight1, weight2, *gradients)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        ids, target, weight1, weight2, *saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:7]
        ignore_index = ctx.options.ignore_index
        may_overwrite = ctx.in_forward and _direct.is_plain_backward()
        if may_overwrite and _direct.scale_gradients(saved, grad_output, target, ignore_index):
            return None, None, *(g if need else None for g, need in zip(saved, needed, strict=True)), None
        if _transforms.is_more_than_first_order(grad_output):
            embedding, bias1, bias2 = ctx.unread.as_they_were()
            tensors = (ids, target, embedding, weight1, bias1, weight2, bias2)
            wanted = wanted_gradients(ctx, tensors)
            return *_transforms.gradients(_OP, wanted, grad_output, tensors, ctx.options), None
        if ctx.in_forward:
            gradients = scale_saved(grad_output, saved, target, ignore_index, SUMS)
            return None, None, *(g if need else None for g, need in zip(gradients, needed, strict=True)), None
        embedding, bias1, bias2 = saved
        arguments = (ids, target, embedding, weight1, bias1, weight2, bias2)
        gradients = _backward(grad_output, *arguments, *_of_schema(ctx.options))
        return None, None, *(g if need else None for g, need in zip(gradients, needed, strict=True)), None


@torch.library.register_fake("charlm::mlp_cross_entropy_forward")
def _(
    ids: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    _, reduction, _, compute_gradient = others
    parameters = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    check_devices(embedding=embedding, ids=ids, target=target, **parameters)
    compute_dtype = torch.float64 if embedding.dtype == torch.float64 else torch.float32
    loss = embedding.new_empty(target.shape if reduction == 0 else (), dtype=compute_dtype)
    shapes = _gradient_shapes(embedding, weight1, weight2) if compute_gradient else [(0,)] * 5
    return loss, *(embedding.new_empty(shape) for shape in shapes)  # type: ignore[return-value]


@torch.library.register_fake("charlm::mlp_cross_entropy_backward")
def _(
    grad_output: Tensor,
    ids: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    parameters = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    check_devices(embedding=embedding, ids=ids, target=target, grad_output=grad_output, **parameters)
    shapes = _gradient_shapes(embedding, weight1, weight2)
    return tuple(embedding.new_empty(shape) for shape in shapes)  # type: ignore[return-value]


def _gradient_shapes(embedding: Tensor, weight1: Tensor, weight2: Tensor) -> list[tuple[int, ...]]:
    """Of embedding, weight1, bias1, weight2, bias2: biases have a gradient also where there is none to receive it."""
    return [
        tuple(embedding.shape),
        tuple(weight1.shape),
        (weight1.shape[0],),
        tuple(weight2.shape),
        (weight2.shape[0],),
    ]
