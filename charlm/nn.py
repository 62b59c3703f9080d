"""The ops of `charlm.ops` as modules.

Constructor arguments, parameter names, initial values and shapes are those of `torch.nn`, so a checkpoint of the module
that one of these replaces loads into it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from charlm import ops

__all__ = ["CrossEntropyLoss", "EmbeddingLinear", "LinearCrossEntropyLoss"]


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
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.context_length = context_length
        self.out_features = out_features
        self.activation = activation
        self.embedding = nn.Parameter(torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        self.weight = nn.Parameter(
            torch.empty(out_features, context_length * embedding_dim, device=device, dtype=dtype)
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
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

    Shapes: input (C,), (N, C) or (N, C, d1, ...); target without the dimension C (indices) or as input (probabilities).
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
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.softcap = softcap
        self.z_loss = z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of the logits `input` against `target`."""
        return ops.cross_entropy(
            input,
            target,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
            softcap=self.softcap,
            z_loss=self.z_loss,
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
        bias: whether the layer adds a bias.
        weight: (C,) a factor per class, kept as a buffer, or None.
        reduction, ignore_index, label_smoothing, softcap, z_loss: as in `CrossEntropyLoss`.

    Shapes: input (..., D); target (...) as class indices or (..., C) as probabilities.
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        softcap: float | None = None,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.softcap = softcap
        self.z_loss = z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of the logits `linear(input)` against `target`."""
        return ops.linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            softcap=self.softcap,
            z_loss=self.z_loss,
        )

    def extra_repr(self) -> str:
        return _loss_repr(self)


def _loss_repr(loss: CrossEntropyLoss | LinearCrossEntropyLoss) -> str:
    options = {name: getattr(loss, name) for name in ("ignore_index", "label_smoothing", "softcap", "z_loss")}
    weighted = [] if loss.weight is None else [f"weight=({loss.weight.shape[0]},)"]
    return ", ".join(
        [f"reduction={loss.reduction!r}", *weighted, *(f"{name}={value}" for name, value in options.items())]
    )
