"""The ops of `charlm.ops` as modules.

Constructor arguments, parameter names, initial values and shapes are those of `torch.nn`, so a checkpoint of the module
that one of these replaces loads into it. What a constructor is given is checked there, not at the first call.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from charlm import ops
from charlm.ops._arguments import ArgumentError, check_chunking, check_output_dtype, loss_options
from charlm.ops._log_probs import log_probs_options
from charlm.ops.embedding_linear import activation_code

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions  # torch 2.13 has it

__all__ = ["CrossEntropyLoss", "EmbeddingLinear", "LinearCrossEntropyLoss", "LinearLogProbs"]


class EmbeddingLinear(nn.Module):
    """`activation(Linear(T*D, H)(Embedding(V, D)(ids).flatten(-2)))` with the table and the layer as its parameters.

    Args:
        num_embeddings: V, the number of tokens.
        embedding_dim: D.
        context_length: T, the number of tokens per context.
        out_features: H.
        bias: whether the layer adds a bias.
        activation: "tanh", "relu", "gelu" (exact, with erf), "silu" or "none".

    Parameters: `embedding` (V, D), standard normal as in `torch.nn.Embedding`; `weight` (H, T*D) and `bias` (H,),
    uniform within 1 / sqrt(T*D) as in `torch.nn.Linear`.

    Shapes: ids (..., T) of any integer dtype to (..., H). See `charlm.ops.embedding_linear` for errors and source.
    """

    bias: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        context_length: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = _size("num_embeddings", num_embeddings)
        self.embedding_dim = _size("embedding_dim", embedding_dim)
        self.context_length = _size("context_length", context_length)
        self.out_features = _size("out_features", out_features)
        activation_code(activation)
        self.activation = activation
        fan_in = self.context_length * self.embedding_dim
        self.embedding = nn.Parameter(torch.empty(self.num_embeddings, self.embedding_dim, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(self.out_features, fan_in, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values from torch's default generator."""
        bound = self.weight.shape[1] ** -0.5 if self.weight.shape[1] > 0 else 0.0
        nn.init.normal_(self.embedding)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states (..., H) of the contexts `ids` (..., T)."""
        return ops.embedding_linear(ids, self.embedding, self.weight, self.bias, activation=self.activation)

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, context_length={self.context_length}, "
            f"out_features={self.out_features}, bias={self.bias is not None}, activation={self.activation!r}"
        )


class CrossEntropyLoss(nn.Module):
    """`torch.nn.CrossEntropyLoss` with a soft cap on the logits and a z-loss; see `charlm.ops.cross_entropy`.

    The options are keywords, because `torch.nn.CrossEntropyLoss` still has two deprecated positions between them.

    Args:
        weight: (C,) a factor per class, kept as a buffer, or None.
        ignore_index: class index whose rows count for nothing.
        reduction: "mean", "sum" or "none".
        label_smoothing: in [0, 1].
        softcap: positive bound on the absolute value of the logits, or None.
        z_loss: coefficient of the squared logsumexp.
        output_dtype: dtype of the loss, or None for that of the logits.

    Shapes: input (C,), (N, C) or (N, C, d1, ...); target without the dimension C (indices) or as input (probabilities);
    token_weights without it.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        softcap: float | None = None,
        z_loss: float = 0.0,
        output_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        loss_options(ignore_index, reduction, label_smoothing, softcap, z_loss)
        if output_dtype is not None:
            check_output_dtype(output_dtype)
        self.register_buffer("weight", _class_weights(weight, None))
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.softcap = softcap
        self.z_loss = z_loss
        self.output_dtype = output_dtype

    def forward(self, input: Tensor, target: Tensor, token_weights: Tensor | None = None) -> Tensor:
        """The loss of the logits `input` against `target`, each row times its entry of `token_weights`."""
        return ops.cross_entropy(
            input,
            target,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
            token_weights=token_weights,
            softcap=self.softcap,
            z_loss=self.z_loss,
            output_dtype=self.output_dtype,
        )

    def extra_repr(self) -> str:
        return _loss_repr(self)


class LinearCrossEntropyLoss(nn.Module):
    """An output layer and its cross-entropy, whose logits are never stored; see `charlm.ops.linear_cross_entropy`.

    As `torch.nn.LinearCrossEntropyLoss`, always in chunks, and with a soft cap and a z-loss. The layer is `linear`, a
    `torch.nn.Linear`: call it for the logits, or tie its `weight` to an embedding.

    Args:
        in_features: D, the size of each row of the input.
        num_classes: C.
        out_features: (d1, ...), the shape of the losses of one row, each of which has a layer of its own; () for one.
        bias: whether the layer adds a bias.
        weight: (C,) a factor per class, kept as a buffer, or None.
        ignore_index: class index whose rows count for nothing; None is -100, and all that goes with probabilities.
        options: taken so that calls need no change, and not read: see `charlm.ops.linear_cross_entropy`.
        reduction, label_smoothing, softcap, z_loss, output_dtype: as in `CrossEntropyLoss`.

    Shapes: input (..., D); target (...) as class indices or (..., C) as probabilities; token_weights (...). With
    `out_features`, input is (N, D), target (N, d1, ...) or (N, C, d1, ...), and token_weights (N, d1, ...).
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: Sequence[int] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: LinearCrossEntropyOptions | None = None,
        softcap: float | None = None,
        z_loss: float = 0.0,
        output_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        loss_options(-100 if ignore_index is None else ignore_index, reduction, label_smoothing, softcap, z_loss)
        if options is not None:
            check_chunking(options)
        if output_dtype is not None:
            check_output_dtype(output_dtype)
        self.in_features = _size("in_features", in_features)
        self.num_classes = _size("num_classes", num_classes)
        self.out_features = tuple(_size(f"out_features[{i}]", size) for i, size in enumerate(out_features))
        layer_size = math.prod(self.out_features, start=self.num_classes)
        self.linear = nn.Linear(self.in_features, layer_size, bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", _class_weights(weight, self.num_classes))
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.options = options
        self.softcap = softcap
        self.z_loss = z_loss
        self.output_dtype = output_dtype

    def forward(self, input: Tensor, target: Tensor, token_weights: Tensor | None = None) -> Tensor:
        """The loss of the logits `linear(input)` against `target`, each row times its entry of `token_weights`."""
        linear_weight, linear_bias = self.linear.weight, self.linear.bias
        if self.out_features:
            linear_weight = linear_weight.unflatten(0, (self.num_classes, *self.out_features))
            if linear_bias is not None:
                linear_bias = linear_bias.unflatten(0, (self.num_classes, *self.out_features))
        return ops.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=self.weight,
            token_weights=token_weights,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            softcap=self.softcap,
            z_loss=self.z_loss,
            output_dtype=self.output_dtype,
        )

    def extra_repr(self) -> str:
        return _loss_repr(self)


class LinearLogProbs(nn.Module):
    """An output layer and its log-probabilities, whose logits are never stored; see `charlm.ops.linear_log_probs`.

    The layer is `linear`, a `torch.nn.Linear`: call it for the logits, or tie its `weight` to an embedding.

    Args:
        in_features: D, the size of each row of the input.
        num_classes: C.
        bias: whether the layer adds a bias.
        temperature: positive divisor of the logits, after the soft cap.
        softcap: positive bound on the absolute value of the logits, or None.
        ignore_index: the id that counts for nothing.
        output_dtype: dtype of `log_probs`, `entropy` and `logsumexp`, or None for that of the input.

    Shapes: input (..., D); ids (...), or (..., K) for K of them a row.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        temperature: float = 1.0,
        softcap: float | None = None,
        ignore_index: int = -100,
        output_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        log_probs_options(ignore_index, temperature, softcap)
        if output_dtype is not None:
            check_output_dtype(output_dtype)
        self.in_features = _size("in_features", in_features)
        self.num_classes = _size("num_classes", num_classes)
        self.linear = nn.Linear(self.in_features, self.num_classes, bias=bias, device=device, dtype=dtype)
        self.temperature = temperature
        self.softcap = softcap
        self.ignore_index = ignore_index
        self.output_dtype = output_dtype

    def forward(self, input: Tensor, ids: Tensor) -> ops.LogProbs:
        """What the softmax of the logits `linear(input)` gives for the classes `ids`."""
        return ops.linear_log_probs(
            input,
            self.linear.weight,
            ids,
            linear_bias=self.linear.bias,
            temperature=self.temperature,
            softcap=self.softcap,
            ignore_index=self.ignore_index,
            output_dtype=self.output_dtype,
        )

    def extra_repr(self) -> str:
        names = ("temperature", "softcap", "ignore_index", "output_dtype")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _loss_repr(loss: CrossEntropyLoss | LinearCrossEntropyLoss) -> str:
    names = ("ignore_index", "label_smoothing", "softcap", "z_loss", "output_dtype")
    options = {name: getattr(loss, name) for name in names}
    weighted = [] if loss.weight is None else [f"weight=({loss.weight.shape[0]},)"]
    return ", ".join(
        [f"reduction={loss.reduction!r}", *weighted, *(f"{name}={value}" for name, value in options.items())]
    )


def _size(name: str, value: Any) -> int:
    try:
        size = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        size = -1
    if size < 0:
        raise ArgumentError(f"{name} must be an integer that is not negative, got {value!r}")
    return size


def _class_weights(weight: Any, num_classes: int | None) -> Tensor | None:
    """`weight` if it can be that of classes."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor or None, got {type(weight).__name__}")
    if not weight.is_floating_point():
        raise ArgumentError(f"weight must have a floating-point dtype, got {weight.dtype}")
    if weight.dim() != 1 or num_classes not in (None, weight.shape[0]):
        classes = "C" if num_classes is None else f"C={num_classes}"
        raise ArgumentError(f"weight must have shape ({classes},), got {tuple(weight.shape)}")
    return weight
