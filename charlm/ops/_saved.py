"""What an op keeps from forward to backward.

What backward reads is saved as torch does it. The arguments of the call are wanted by derivatives of higher order alone,
and keeping them must not be in the way of anything else: they may be written to before backward, as torch allows where it
does not read them; and logits whose gradient is in hand are not kept at all. So there are

- values: aliases of the arguments, and the versions they had, compared only when a second derivative is asked for;
- a stand-in: one more result of the op's Function, without memory of its own, whose gradient is that of all arguments.
  Second derivatives are functions of it, and reach the arguments through backward of that very Function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from charlm.ops import _transforms

_PLAIN = (Tensor, torch.nn.Parameter)
_NOTHING = torch.empty(0, device="cpu")

Tensors = Sequence[Tensor | None]


def keep(ctx: Any, loss: Tensor, read: Tensors, arguments: Tensors, recovered: int | None = None) -> Tensor | None:
    """Saves `read` for backward, and the arguments for derivatives of higher order. Returns their stand-in.

    loss: a result in the dtype that is computed in, which becomes that of the stand-in.
    arguments: of the Function, from its first on.
    recovered: the argument whose value backward makes out of `read`, so that it is not kept.
    """
    ctx.set_materialize_grads(False)
    ctx.kept = len(read)
    ctx.is_tensor = [argument is not None for argument in arguments]
    if torch.compiler.is_compiling():  # differentiates once
        ctx.save_for_backward(*read)
        return None
    values: list[Tensor | None] = []
    versions: list[tuple[int, Tensor, int]] = []
    size = 0
    for index, argument in enumerate(arguments):
        if argument is None:
            values.append(None)
            continue
        if ctx.needs_input_grad[index]:
            size += argument.numel()
        if index == recovered:
            values.append(None)
        elif not argument.is_floating_point():
            values.append(argument)  # torch reads these in backward too
        else:
            values.append(argument.data)  # has a version of its own
            if type(argument) in _PLAIN:
                versions.append((index, _version_counter(argument), argument._version))
    stand_in = loss.new_zeros(()).expand(size)
    ctx.versions = versions
    ctx.shapes = [None if argument is None else (argument.shape, argument.dtype) for argument in arguments]
    ctx.save_for_backward(*read, *values, stand_in)
    return stand_in


def gradients(
    ctx: Any,
    op: _transforms.Op,
    options: Sequence[Any],
    grad_output: Tensor | None,
    stand_in_gradient: Tensor | None,
    first_order: Callable[[Sequence[Any], Sequence[bool]], Sequence[Tensor | None]],
    recover: tuple[int, Callable[[Tensors, Tensors], Tensor]] | None = None,
) -> list[Tensor | None]:
    """Backward of an op's Function: the gradients of the arguments that `keep` was given.

    first_order: (what was saved to be read, which gradients are wanted) to the gradients of the arguments.
    recover: the argument that was not kept, and (what was saved to be read, arguments) to its value.
    """
    found: list[Tensor | None] = [None] * len(ctx.is_tensor)
    if grad_output is not None:
        saved = ctx.saved_tensors  # once: checkpointing computes them again at each reading
        read = saved[: ctx.kept]
        if _transforms.is_more_than_first_order(grad_output):
            arguments = _arguments(ctx, read, saved[ctx.kept : -1], saved[-1], recover)
            wanted = ctx.needs_input_grad[: len(arguments)]
            found = _transforms.gradients(op, wanted, grad_output, arguments, options)
        else:
            found = list(first_order(read, _wanted(ctx)))
    if stand_in_gradient is None:
        return found
    pieces = _pieces(ctx, stand_in_gradient)
    return [a if b is None else b if a is None else a + b for a, b in zip(found, pieces, strict=True)]


def _version_counter(tensor: Tensor) -> Tensor:
    """A tensor without memory that counts the writes to this one, its bases and its views."""
    counter = tensor.detach()
    counter.data = _NOTHING if counter.is_cpu else counter.new_empty(0)
    return counter


def _wanted(ctx: Any) -> tuple[bool, ...]:
    """Which gradients the running backward is for: of the arguments that require one, those that someone asked for."""
    if torch.compiler.is_compiling():
        return tuple(ctx.needs_input_grad[: len(ctx.is_tensor)])
    nodes = iter(ctx.next_functions)  # of the tensors alone
    return tuple(
        is_tensor and _is_asked_for(next(nodes)[0]) and need
        for is_tensor, need in zip(ctx.is_tensor, ctx.needs_input_grad, strict=False)
    )


def _is_asked_for(node: Any) -> bool:
    try:
        return node is None or torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch.autograd.grad with a leaf, which is its very question
        return True


def _arguments(
    ctx: Any,
    read: Tensors,
    values: Tensors,
    stand_in: Tensor,
    recover: tuple[int, Callable[[Tensors, Tensors], Tensor]] | None,
) -> list[Tensor | None]:
    """The arguments as forward had them, as functions of the stand-in."""
    for index, counter, version in ctx.versions:
        if counter._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"second derivative reads argument {index} of {type(ctx).__name__.removesuffix('Backward').strip('_')}, "
                f"which is at version {counter._version}; expected version {version} instead"
            )
    arguments = list(values)
    if recover is not None:
        index, value = recover
        arguments[index] = value(read, values)
    with torch.enable_grad():  # also where nobody differentiates further, but maps over backward
        pieces = _pieces(ctx, stand_in)
        return [a if a is None or p is None else a + p for a, p in zip(arguments, pieces, strict=True)]


def _pieces(ctx: Any, stand_in: Tensor) -> list[Tensor | None]:
    """The part of a stand-in, or of its gradient, that is each argument's, in the argument's shape."""
    pieces: list[Tensor | None] = []
    start = 0
    for of, needed in zip(ctx.shapes, ctx.needs_input_grad, strict=False):
        if of is None or not needed:
            pieces.append(None)
            continue
        shape, dtype = of
        pieces.append(stand_in[start : start + shape.numel()].view(shape).to(dtype))
        start += shape.numel()
    return pieces
