"""The ops as a GPU computes them for ids and targets out of range, in plain PyTorch: what `check` takes for the truth.

Nothing there waits to be told of such a value, so it is no error as on the CPU. It is never an index: what depends on
it is NaN, and all else is as it would be without its row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm import ops
from charlm.ops import reference


def embedding_linear(
    ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "tanh"
) -> Tensor:
    outside = _outside(ids, embedding.shape[0])
    output = reference.embedding_linear(ids.long().where(~outside, 0), embedding, weight, bias, activation=activation)
    return output.masked_fill(outside.any(-1, keepdim=True), torch.nan)


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
) -> Tensor:
    class_dim = min(1, input.ndim - 1)
    outside = _outside(target, input.shape[class_dim]) & (target.long() != ignore_index)
    known = target.long().where(~outside, ignore_index)
    loss = reference.cross_entropy(
        input,
        known,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        token_weights=token_weights,
        softcap=softcap,
        z_loss=z_loss,
    )
    rows = input.movedim(class_dim, -1)[outside].sum(-1) * torch.nan
    return loss.masked_scatter(outside, rows) if reduction == "none" else loss + rows.sum()


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    token_weights: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    logits = F.linear(input, linear_weight, linear_bias)
    losses = cross_entropy(
        logits.flatten(0, -2),
        target.flatten(),
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        token_weights=None if token_weights is None else token_weights.flatten(),
        softcap=softcap,
        z_loss=z_loss,
    )
    return losses.reshape(target.shape) if reduction == "none" else losses


def log_probs(
    input: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> ops.LogProbs:
    outside = _outside(ids, input.shape[-1]) & (ids.long() != ignore_index)
    # Any class in its place, so that the row counts.
    known = ids.long().where(~outside, int(ignore_index == 0))
    found = reference.log_probs(input, known, temperature=temperature, softcap=softcap, ignore_index=ignore_index)
    first = outside if ids.dim() < input.dim() else outside[..., :1].any(-1)
    return found._replace(
        log_probs=_nan_in_rows(found.log_probs, outside, input), rank=found.rank.masked_fill(first, -1)
    )


def linear_log_probs(
    input: Tensor,
    linear_weight: Tensor,
    ids: Tensor,
    *,
    linear_bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> ops.LogProbs:
    logits = F.linear(input, linear_weight, linear_bias)
    return log_probs(logits, ids, temperature=temperature, softcap=softcap, ignore_index=ignore_index)


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
) -> Tensor:
    hidden = embedding_linear(ids, embedding, weight1, bias1)
    return linear_cross_entropy(
        hidden,
        weight2,
        target,
        linear_bias=bias2,
        reduction=reduction,
        ignore_index=ignore_index,
        softcap=softcap,
    )


def _nan_in_rows(values: Tensor, outside: Tensor, input: Tensor) -> Tensor:
    """NaN where ids are outside, and in the gradients of their rows of the input."""
    several = outside if outside.dim() == input.dim() else outside.unsqueeze(-1)
    is_bad = several.any(-1, keepdim=True)
    rows = input.sum(-1, keepdim=True) * torch.zeros_like(is_bad, dtype=input.dtype).masked_fill(is_bad, torch.nan)
    return values.where(~outside, rows.expand(several.shape).reshape(outside.shape))


def _outside(indices: Tensor, size: int) -> Tensor:
    wide = indices.long()  # not all unsigned dtypes can be compared
    return (wide < 0) | (wide >= size)
