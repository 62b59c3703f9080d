"""What keeps the ops right where a call is differentiated twice, forwards, or by torch.func.

A plain call runs an op's own Function, whose backward is made for first derivatives. Everything else comes here:

- backward of that Function, where its result is differentiated further (create_graph) or mapped: `gradients`, by
  autograd through the reference. A second derivative then costs what it costs in eager PyTorch, a first one nothing.
- forward-mode AD (jvp, jacfwd, hessian, dual numbers): the reference, since a tangent wants the very intermediate
  results that the kernels avoid.
- torch.export: the reference, so that a program runs without charlm and can be trained.
- grad, vjp and vmap of torch.func: `_Transformed`, which ends in kernels for values and first gradients. A mapped
  dimension becomes rows of one call where weights are shared, and for all else the reference is mapped: with a weight
  or a weight's gradient for each sample there is nothing left to share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, compiler
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import TransformType, get_interpreter_stack, is_legacy_batchedtensor, unwrap_if_dead
from torch.autograd import forward_ad

from charlm.ops._arguments import HALF, LossOptions
from charlm.ops._autograd import has_autocast

Tensors = Sequence[Any]  # tensors, and None for those left out


@dataclass(frozen=True)
class Op:
    """An op as functions of (*tensors, options); the result is in the dtype that is computed in.

    call: the op, through whichever way fits.
    reference: its twin in plain PyTorch, for tensors in float32 or float64.
    fold: (mapped, batch_size, tensors, options) to the results of all samples (B, ...) by one call of the op, or None
        where that cannot be; mapped tensors have the samples in dimension 0.
    """

    call: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    fold: Callable[[Sequence[bool], int, Tensors, Any], Tensor | None]


def is_transformed() -> bool:
    """Whether forward-mode AD (which jvp turns on too), another transform of torch.func or torch.export is at work."""
    # The last is torch.compiler.is_exporting(), which in torch 2.11 is true in all of torch.compile.
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0 or compiler._is_exporting_flag


def is_exporting() -> bool:
    """Whether torch.export is at work. Under autocast the reference alone is written out, and none of our casts: the
    program may run under another autocast, which would be refused a tensor that is not in the dtype it had here.
    """
    return compiler._is_exporting_flag


def transformed(op: Op, tensors: Tensors, options: Any) -> Tensor:
    """The op where `is_transformed()`."""
    if _kernels_fit():
        result: Tensor = _Transformed.apply(op, options, *map(_widened, tensors))
        return result
    return by_reference(op, tensors, options)


def by_reference(op: Op, tensors: Tensors, options: Any) -> Tensor:
    """The op in plain PyTorch, bfloat16 and float16 computed in float32 as by the kernels, whatever autocast says."""
    tensors = [*map(_widened, tensors)]
    device = tensors[0].device.type
    if not has_autocast(device):
        return op.reference(*tensors, options)
    with torch.autocast(device, enabled=False):
        return op.reference(*tensors, options)


def is_more_than_first_order(grad_output: Tensor) -> bool:
    """In a backward: whether its result will be differentiated too (create_graph), or something is mapped over it."""
    if torch.compiler.is_compiling():
        return False
    # The last is what is_grads_batched=True maps with.
    return torch.is_grad_enabled() or is_transformed() or is_legacy_batchedtensor(grad_output)


def gradients(
    op: Op, wanted: Sequence[bool], grad_output: Tensor, tensors: Tensors, options: Any
) -> list[Tensor | None]:
    """The gradients of the wanted tensors, None for the others, themselves differentiable as often as you like."""
    # By autograd, not torch.func.vjp, which refuses to run among hooks on saved tensors. Of aliases, so that the hooks
    # of the tensors themselves run once, on the result.
    with torch.enable_grad():
        aliases = [tensor.view_as(tensor) for tensor in _chosen(tensors, wanted)]
        result = by_reference(op, _merged(tensors, wanted, aliases), options)
    found = torch.autograd.grad(result, aliases, grad_output, create_graph=torch.is_grad_enabled())
    return _merged([None] * len(tensors), wanted, found)


def reduce_each(
    losses: Tensor, target: Tensor, weight: Tensor | None, token_weights: Tensor | None, options: LossOptions
) -> Tensor:
    """Row losses (B, ...) of B samples, reduced sample by sample; the token weights, (B, ...) too, are in them."""
    if options.reduction == 0:
        return losses
    totals = _sum_each(losses)
    if options.reduction == 2:
        return totals
    counted = torch.ones_like(losses) if token_weights is None else token_weights.to(losses.dtype)
    if not target.is_floating_point():
        target = target.long()
        kept = target != options.ignore_index
        if weight is not None:
            counted = counted * weight.to(losses.dtype)[target.masked_fill(~kept, 0)]
        counted = counted.where(kept, 0.0)
    return totals / _sum_each(counted)


def _sum_each(rows: Tensor) -> Tensor:
    return rows.unsqueeze(-1).flatten(1).sum(1)


def _kernels_fit() -> bool:
    """Not for forward-mode AD, nor where the compiler or functionalize wants to see ordinary ops."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    levels = get_interpreter_stack()
    return levels is not None and all(level.key() in (TransformType.Grad, TransformType.Vmap) for level in levels)


def _widened(tensor: Tensor | None) -> Tensor | None:
    return tensor.float() if tensor is not None and tensor.dtype in HALF else tensor


def _saved(ctx: Any) -> list[Any]:
    """The saved tensors, out of the wrappers of levels that have ended: another level must not wrap those again."""
    return [tensor if tensor is None else unwrap_if_dead(tensor) for tensor in ctx.saved_tensors]


def _chosen(values: Sequence[Any], flags: Sequence[bool]) -> list[Any]:
    return [value for value, flag in zip(values, flags, strict=True) if flag]


def _merged(values: Sequence[Any], flags: Sequence[bool], replacements: Iterable[Any]) -> list[Any]:
    """`values` with those that are flagged replaced, in order."""
    remaining = iter(replacements)
    return [next(remaining) if flag else value for value, flag in zip(values, flags, strict=True)]


def _gradients_by_vjp(
    op: Op, wanted: Sequence[bool], options: Any, grad_output: Tensor, tensors: Tensors
) -> tuple[Tensor, ...]:
    """The wanted gradients, where torch.func is at work."""

    def result(*chosen: Tensor) -> Tensor:
        return by_reference(op, _merged(tensors, wanted, chosen), options)

    pull = torch.func.vjp(result, *_chosen(tensors, wanted))[1]
    found: tuple[Tensor, ...] = pull(grad_output)
    return found


def _mapped(op: Op, batch_size: int, dims: Sequence[int | None], tensors: Tensors, options: Any) -> Tensor:
    """The results of all samples, (B, ...)."""
    mapped = [dim is not None for dim in dims]
    in_front = [
        t.movedim(dim, 0) if t is not None and dim is not None else t for t, dim in zip(tensors, dims, strict=True)
    ]
    folded = op.fold(mapped, batch_size, in_front, options)
    if folded is not None:
        return folded
    in_dims = tuple(0 if flag else None for flag in mapped)
    results: Tensor = torch.vmap(lambda *sample: by_reference(op, sample, options), in_dims)(*in_front)
    return results


class _Transformed(torch.autograd.Function):
    """An op at one level of grad, vjp or vmap."""

    @staticmethod
    def forward(op: Op, options: Any, *tensors: Tensor | None) -> Tensor:
        return op.call(*tensors, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op, ctx.options, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2:]
        found = _Gradients.apply(ctx.op, ctx.options, wanted, grad_output, *_saved(ctx))
        return None, None, *_merged([None] * len(wanted), wanted, found)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], op: Op, options: Any, *tensors: Tensor | None) -> tuple[Tensor, int]:
        return _mapped(op, info.batch_size, in_dims[2:], tensors, options), 0


class _Gradients(torch.autograd.Function):
    """The wanted gradients of an op, by its kernels; their own derivative is that of the reference."""

    @staticmethod
    def forward(
        op: Op, options: Any, wanted: Sequence[bool], grad_output: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in _chosen(tensors, wanted)]
            result = op.call(*_merged(tensors, wanted, leaves), options)
        return torch.autograd.grad(result, leaves, grad_output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.op, ctx.options, ctx.wanted, *variables = inputs
        ctx.save_for_backward(*variables)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        variables, needed = _saved(ctx), ctx.needs_input_grad[3:]

        def first(*chosen: Tensor) -> tuple[Tensor, ...]:
            grad_output, *tensors = _merged(variables, needed, chosen)
            return _gradients_by_vjp(ctx.op, ctx.wanted, ctx.options, grad_output, tensors)

        pull = torch.func.vjp(first, *_chosen(variables, needed))[1]
        return None, None, None, *_merged([None] * len(needed), needed, pull(upstream))

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        op: Op,
        options: Any,
        wanted: Sequence[bool],
        grad_output: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        grad_dim, *dims = in_dims[3:]
        if None in _chosen(dims, wanted):  # a gradient for each sample of a tensor that all of them share
            found = torch.vmap(
                lambda upstream, *sample: _gradients_by_vjp(op, wanted, options, upstream, sample), (grad_dim, *dims)
            )(grad_output, *tensors)
        else:
            upstream = grad_output.expand(info.batch_size, *grad_output.shape) if grad_dim is None else grad_output

            def results(*chosen: Tensor) -> Tensor:
                return _mapped(op, info.batch_size, dims, _merged(tensors, wanted, chosen), options)

            primals = _chosen(tensors, wanted)
            pull = torch.func.vjp(results, *primals)[1]
            found = pull(upstream if grad_dim is None else upstream.movedim(grad_dim, 0))
            found = tuple(g.movedim(dim, 0) for g, dim in zip(found, _chosen(dims, wanted), strict=True))
        return found, (0,) * len(found)
