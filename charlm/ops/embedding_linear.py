"""The first layer of a neural language model: embed a context, concatenate, multiply, activate, as one op."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from charlm.ops import _dtensor, _extension, _transforms, reference  # noqa: F401  _extension registers the ops
from charlm.ops._arguments import ArgumentError, complain
from charlm.ops._autograd import apply, autocast_dtype, cast, check_devices, needs_gradient
from charlm.ops._saved import Unread, wanted_gradients

_forward = torch.ops.charlm.embedding_linear_forward.default
_backward = torch.ops.charlm.embedding_linear_backward.default

_ACTIVATIONS = {"tanh": 0, "relu": 1, "gelu": 2, "silu": 3, "none": 4}
_ACTIVATION_NAMES = tuple(_ACTIVATIONS)
# Their derivative is one of their input, which backward computes again.
_READ_BIAS = (_ACTIVATIONS["gelu"], _ACTIVATIONS["silu"])


def embedding_linear(
    ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "tanh"
) -> Tensor:
    """``activation(F.linear(F.embedding(ids, embedding).flatten(-2), weight, bias))`` as one op.

    Each distinct pair of a token and its position is multiplied once, whatever the batch: a row of the result is a sum
    of T rows of that table, and the gradients of embedding and weight follow from the gradient of the table. Where
    that would cost more, since few tokens occur twice, rows are gathered and multiplied a tile at a time. Nothing of
    size N x T*D is held in either case, on the CPU; a GPU gathers all rows for one product, and chooses by shape alone.
    Results do not depend on the number of threads.

    Args:
        ids: (..., T), any integer dtype and any strides, values in [0, V); any leading dimensions, also none.
            Overlapping windows, ``tokens.unfold(0, T, 1)``, are read in place. Nested tensors (B, j, ..., T) with
            layout ``torch.jagged`` give nested ones, (B, j, ..., H).
        embedding: (V, D), one row per token; float32, float64, bfloat16 or float16 (the last two are computed in
            float32).
        weight: (H, T*D) in the dtype of ``embedding``; columns t*D to (t+1)*D act on position t.
        bias: (H,) in the dtype of ``embedding``, or None.
        activation: "tanh", "relu", "gelu" (exact, with erf), "silu" or "none".

    Returns:
        (..., H) in the dtype of ``embedding``, under autocast in that of :func:`torch.nn.functional.linear`;
        differentiable in ``embedding``, ``weight`` and ``bias``, any number of times.

    Raises:
        IndexError: an id is outside [0, V). Not on CUDA, where nothing waits for the GPU to say so: there the output of
            that row is NaN, and the row adds nothing to any gradient.
        ValueError: an argument has the wrong shape, dtype or device, or ``activation`` is unknown. It is a RuntimeError
            too.
        TypeError: an argument is no tensor.

    Source:
        Bengio et al. 2003, "A Neural Probabilistic Language Model", section 2, the term tanh(d + H x); the table of
        products per position: Devlin et al. 2014, "Fast and Robust Neural Network Joint Models", section 2.3, there
        for inference; GELU: Hendrycks and Gimpel 2016; SiLU: Elfwing et al. 2017.
    """
    if has_torch_function_variadic(ids, embedding, weight, bias):
        tensors = (ids, embedding, weight, bias)
        return handle_torch_function(embedding_linear, tensors, *tensors, activation=activation)
    if isinstance(ids, Tensor) and ids.is_nested:
        return _nested(ids, embedding, weight, bias, activation)
    try:
        code = activation_code(activation)
        dtype = autocast_dtype(embedding)
        if dtype is not None:
            if _transforms.is_exporting():
                return _reference(ids, embedding, weight, bias, code)
            embedding, weight, bias = cast(dtype, embedding, weight, bias)
        output = _call(ids, embedding, weight, bias, code)
        return output if output.dtype == embedding.dtype else output.to(embedding.dtype)
    except Exception as error:
        complain(error, {"bias": bias}, ids=ids, embedding=embedding, weight=weight)
        raise


def activation_code(activation: str) -> int:
    """The number that stands for an activation in the op schemas."""
    try:
        return _ACTIVATIONS[activation]
    except (KeyError, TypeError):
        names = ", ".join(repr(name) for name in _ACTIVATIONS)
        raise ArgumentError(f"activation must be one of {names}, got {activation!r}") from None


def _nested(ids: Any, embedding: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Of a batch of sequences of unequal lengths, with layout torch.jagged: (B, j, ..., T) to (B, j, ..., H)."""
    if ids.layout != torch.jagged or ids._ragged_idx != 1 or ids.dim() < 3:  # as PyTorch's, which are most often errors
        return reference.embedding_linear(ids, embedding, weight, bias, activation=activation)
    output = embedding_linear(ids.values(), embedding, weight, bias, activation=activation)
    return torch.nested.nested_tensor_from_jagged(output, ids.offsets(), ids.lengths())


def _call(ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor | None, activation: int) -> Tensor:
    if type(ids) is not Tensor and _dtensor.is_dtensor(ids):
        return _dtensor.call("embedding_linear", ids, embedding, weight, bias, activation)
    if _transforms.is_transformed():
        return _transforms.transformed(_OP, (ids, embedding, weight, bias), activation)
    if needs_gradient(embedding, weight, bias):
        output: Tensor = apply(_EmbeddingLinear, ids, embedding, weight, bias, activation)
        return output
    return _forward(ids, embedding, weight, bias, activation, False)[0]


def _reference(ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor | None, activation: int) -> Tensor:
    return reference.embedding_linear(ids, embedding, weight, bias, activation=_ACTIVATION_NAMES[activation])


def _fold(mapped: Sequence[bool], size: int, tensors: _transforms.Tensors, activation: int) -> Tensor | None:
    """The samples as further contexts, where they share the parameters."""
    return None if any(mapped[1:]) else _OP.call(*tensors, activation)


_OP = _transforms.Op(_call, _reference, _fold)


class _EmbeddingLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor | None, activation: int
    ) -> Tensor:
        # Of the table the rows that were read are kept, as by torch; it and the bias may change before backward.
        output, rows = _forward(ids, embedding, weight, bias, activation, True)
        read_bias = bias.clone() if bias is not None and activation in _READ_BIAS else None
        ctx.save_for_backward(ids, rows, weight, output, read_bias)
        ctx.unread = None if torch.compiler.is_compiling() else Unread(embedding=embedding, bias=bias)
        ctx.has_bias = bias is not None
        ctx.activation = activation
        ctx.vocab_size = embedding.shape[0]
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        ids, rows, weight, output, bias = ctx.saved_tensors
        wanted = wanted_gradients(ctx, (ids, rows, weight, ctx.has_bias or None))
        if _transforms.is_more_than_first_order(grad_output):
            embedding, bias = ctx.unread.as_they_were()
            tensors = (ids, embedding, weight, bias)
            return *_transforms.gradients(_OP, wanted, grad_output, tensors, ctx.activation), None
        wanted = wanted[1:]
        gradients = _backward(grad_output, output, ids, rows, weight, bias, ctx.activation, ctx.vocab_size, *wanted)
        return None, *(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)), None


@torch.library.register_fake("charlm::embedding_linear_forward")
def _(
    ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor | None, activation: int, keep_rows: bool
) -> tuple[Tensor, Tensor]:
    check_devices(ids=ids, embedding=embedding, weight=weight, bias=bias)
    rows = [torch.sym_min(embedding.shape[0], ids.numel()), embedding.shape[1]] if keep_rows else [0]
    return embedding.new_empty([*ids.shape[:-1], weight.shape[0]]), embedding.new_empty(rows)


@torch.library.register_fake("charlm::embedding_linear_backward")
def _(
    grad_output: Tensor,
    output: Tensor,
    ids: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: int,
    vocab_size: int,
    embedding_gradient: bool,
    weight_gradient: bool,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_devices(ids=ids, rows=rows, weight=weight, bias=bias, grad_output=grad_output, output=output)
    return (
        rows.new_empty([vocab_size, rows.shape[1]] if embedding_gradient else [0]),
        weight.new_empty(weight.shape if weight_gradient else [0]),
        weight.new_empty([weight.shape[0]] if bias_gradient else [0]),
    )
