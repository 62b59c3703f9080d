"""The loss of rows whose classes are spread over the processes of a group: each has a slice of the logits, or of the
weight that they come from.

With the logits z of a row, their maximum m_r on rank r, and m = max_r m_r, the ranks exchange m_r, sum_c exp(z_c - m_r)
and the logit of the row's class y, which one of them has, and each computes the loss

    log(sum_r exp(m_r - m) sum_c exp(z_c - m_r)) - (z_y - m)

The logits (N, C_r) are computed a chunk of rows at a time, and again in backward, which sends one message, the sum of
the input's gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from charlm.ops._arguments import check_token_weights

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Logits at a time: a twentieth of all, in chunks that feed the matrix products and are at most so many bytes.
_MIN_CHUNK_ROWS = 64
_MAX_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Loss:
    """Which loss, of which rows.

    Attributes:
        labels: (N,) the class of each row, 0 where it is ignored.
        kept: (N,) bool, whether it is not.
        first: the first class of this rank.
        classes: C, the classes of all ranks.
        weight: (C,) in the dtype computed in, or None.
        token_weights: (N,) likewise, 0 where the row is ignored, or None.
        partial_input_gradient: leave the input's gradient as each rank's part of a sum.
    """

    labels: Tensor
    kept: Tensor
    first: int
    classes: int
    weight: Tensor | None
    token_weights: Tensor | None
    label_smoothing: float
    softcap: float | None
    z_loss: float
    group: dist.ProcessGroup | None
    partial_input_gradient: bool = False

    @classmethod
    def of(
        cls,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        token_weights: Tensor | None,
        *,
        ignore_index: int,
        classes: int,
        **others: Any,
    ) -> Loss:
        """The loss of rows with class indices `target`, which are checked; the rest is as in the attributes."""
        if weight is not None and weight.shape != (classes,):
            raise ValueError(f"weight must have shape (C={classes},), got {tuple(weight.shape)}")
        labels = target.long()
        kept = labels != ignore_index
        check_classes("target", labels, kept, classes)
        dtype = compute_dtype(input)
        return cls(
            labels=labels.where(kept, 0).flatten(),
            kept=kept.flatten(),
            classes=classes,
            weight=None if weight is None else weight.detach().to(dtype),
            token_weights=None if token_weights is None else token_weights.to(dtype).where(kept, 0.0).flatten(),
            **others,
        )

    def label_weights(self) -> Tensor:
        """(N,) the weight of each row's class, 0 where it is ignored."""
        return self.kept.long() if self.weight is None else self.weight[self.labels].where(self.kept, 0.0)

    def row_weights(self) -> Tensor:
        """(N,) what each row counts in a mean."""
        weights = self.label_weights()
        return weights if self.token_weights is None else weights * self.token_weights

    def own_labels(self, own_classes: int) -> tuple[Tensor, Tensor]:
        """(N,) the class of each row, counted from this rank's first, and whether it is one of this rank's; else 0."""
        return owned(self.labels, self.kept, self.first, own_classes)

    def own_spread(self, own_classes: int) -> Tensor | float:
        """The share of label smoothing of each class of this rank: (C_r,), or a number where all are the same."""
        share = self.label_smoothing / self.classes
        return share if self.weight is None else share * self.weight[self.first : self.first + own_classes]

    def total_spread(self) -> Tensor | float:
        """The sum of the spread over the classes of all ranks."""
        return self.label_smoothing * (1.0 if self.weight is None else self.weight.mean())


def row_losses(input: Tensor, linear_weight: Tensor | None, linear_bias: Tensor | None, loss: Loss) -> Tensor:
    """The loss of every row, (N,) in the dtype computed in; without `linear_weight` of logits (..., C_r) in `input`."""
    rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    losses: Tensor = _VocabParallel.apply(rows, linear_weight, linear_bias, loss)
    return losses if loss.token_weights is None else losses * loss.token_weights


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, linear_weight: Tensor | None, linear_bias: Tensor | None, loss: Loss
    ) -> Tensor:
        own_classes = input.shape[1] if linear_weight is None else linear_weight.shape[0]
        labels, is_own = loss.own_labels(own_classes)
        spread = loss.own_spread(own_classes)
        own = input.new_zeros((4, len(input)), dtype=compute_dtype(input))
        own_maximum, own_sum, own_label_logit, own_spread_logits = own
        own_maximum.fill_(-math.inf)  # stays so where this rank has no class
        for rows in chunks(len(input), own_classes, own.itemsize):
            logits, _ = capped(uncapped(input[rows], linear_weight, linear_bias), loss.softcap)
            own_label_logit[rows] = logits.gather(1, labels[rows, None]).squeeze(1)
            own_spread_logits[rows] = (logits * spread).sum(1) if loss.label_smoothing > 0.0 else 0.0
            maximum = logits.amax(1)
            own_maximum[rows] = maximum
            # A slice that is nothing but padding, with logits of -inf, has a sum of 0.
            shift = maximum.where(maximum > -math.inf, 0.0)
            own_sum[rows] = logits.sub_(shift[:, None]).exp_().sum(1)
        own_label_logit.masked_fill_(~is_own, 0.0)

        maxima, sums, label_logits, spread_logits = all_gather(own, loss.group).unbind(1)
        # logsumexp = shift + log_sum, apart so that z - shift cancels exactly.
        shift = maxima.amax(0)
        log_sum = (sums * (maxima - shift).exp()).sum(0).log()
        lse = shift + log_sum
        nll = log_sum - (label_logits.sum(0) - shift)
        losses = nll * loss.label_weights() * (1.0 - loss.label_smoothing)
        losses += lse * loss.total_spread() - spread_logits.sum(0)
        losses += loss.z_loss * lse.square()
        ctx.save_for_backward(input, linear_weight, linear_bias, shift, log_sum)
        ctx.loss = loss
        return losses.where(loss.kept, 0.0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a loss whose classes are spread over processes has no second derivative")
        input, linear_weight, linear_bias, shift, log_sum = ctx.saved_tensors
        loss: Loss = ctx.loss
        own_classes = input.shape[1] if linear_weight is None else linear_weight.shape[0]
        labels, is_own = loss.own_labels(own_classes)
        spread = loss.own_spread(own_classes)
        # d loss / d z_c = softmax_c (label_share + total_spread + 2 z_loss lse) - label_share [c = y] - spread_c
        scale = grad_output.where(loss.kept, 0.0)
        label_share = scale * loss.label_weights() * (1.0 - loss.label_smoothing)
        softmax_share = label_share + scale * (loss.total_spread() + 2.0 * loss.z_loss * (shift + log_sum))
        own_label_share = label_share.where(is_own, 0.0)

        gradients = LayerGradients(input, linear_weight, linear_bias, ctx.needs_input_grad)
        for rows in chunks(len(input), own_classes, shift.itemsize):
            logits, slope = capped(uncapped(input[rows], linear_weight, linear_bias), loss.softcap)
            gradient = logits.sub_(shift[rows, None]).sub_(log_sum[rows, None]).exp_().mul_(softmax_share[rows, None])
            if loss.label_smoothing > 0.0:
                gradient -= scale[rows, None] * spread
            gradient[torch.arange(len(gradient), device=labels.device), labels[rows]] -= own_label_share[rows]
            if slope is not None:
                gradient *= slope
            gradients.add(rows, gradient)
        if not loss.partial_input_gradient:
            gradients.sum_of_input(loss.group)
        return *gradients.totals(), None


class LayerGradients:
    """The gradients of what the logits come from, added up over chunks of rows; without `linear_weight` of logits."""

    def __init__(
        self, input: Tensor, linear_weight: Tensor | None, linear_bias: Tensor | None, needed: Sequence[bool]
    ) -> None:
        self._rows, self._linear_weight = input, linear_weight
        self._input, self._weight, self._bias = (
            torch.zeros_like(tensor, dtype=compute_dtype(input), memory_format=torch.contiguous_format)
            if tensor is not None and is_needed
            else None
            for tensor, is_needed in zip((input, linear_weight, linear_bias), needed, strict=False)
        )

    def add(self, rows: slice, gradient: Tensor) -> None:
        """That of these rows' logits, (rows, C_r)."""
        if self._bias is not None:
            self._bias += gradient.sum(0)
        gradient = gradient.to(self._rows.dtype)
        if self._input is not None:
            self._input[rows] = gradient if self._linear_weight is None else gradient @ self._linear_weight
        if self._weight is not None and gradient.dtype == self._weight.dtype:
            self._weight.addmm_(gradient.T, self._rows[rows])
        elif self._weight is not None:
            self._weight += gradient.T @ self._rows[rows]

    def sum_of_input(self, group: dist.ProcessGroup | None) -> None:
        """Makes the input's gradient that of the classes of all ranks: one message."""
        if self._input is not None:
            dist.all_reduce(self._input, group=group)

    def totals(self) -> tuple[Tensor | None, ...]:
        """Those of input, weight and bias, in their dtype; None where not needed."""
        return tuple(None if g is None else g.to(self._rows.dtype) for g in (self._input, self._weight, self._bias))


def compute_dtype(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def chunks(rows: int, classes: int, itemsize: int) -> Iterator[slice]:
    if classes == 0:
        return iter(())
    most = max(_MIN_CHUNK_ROWS, _MAX_CHUNK_BYTES // (classes * itemsize))
    size = min(most, max(_MIN_CHUNK_ROWS, rows // 20))
    return (slice(start, start + size) for start in range(0, rows, size))


def uncapped(input: Tensor, linear_weight: Tensor | None, linear_bias: Tensor | None) -> Tensor:
    """The logits before the softcap: a new (rows, C_r) tensor in the dtype computed in."""
    if linear_weight is None:
        return input.to(compute_dtype(input), copy=True)
    return F.linear(input, linear_weight, linear_bias).to(compute_dtype(input))


def capped(logits: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """The logits in the same memory, and with a softcap their derivative by what was capped."""
    if softcap is None:
        return logits, None
    unit = logits.div_(softcap).tanh_()
    slope = 1.0 - unit.square()
    return unit.mul_(softcap), slope


def all_gather(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The tensors of all ranks, stacked."""
    of_ranks = own.new_empty((dist.get_world_size(group), *own.shape))
    dist.all_gather(list(of_ranks.unbind(0)), own, group)
    return of_ranks


def owned(labels: Tensor, kept: Tensor, first: int, own_classes: int) -> tuple[Tensor, Tensor]:
    """Classes counted from the first of this rank, and whether each is kept and one of this rank's; else 0."""
    own = labels - first
    is_own = kept & (own >= 0) & (own < own_classes)
    return own.where(is_own, 0), is_own


def check_labels(input: Tensor, labels: Tensor, name: str = "target") -> None:
    """The dtypes of inputs, or logits, and of class indices, which have that name."""
    if input.dtype not in DTYPES:
        raise ValueError(f"input must be float32, float64, bfloat16 or float16, got {input.dtype}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must have an integer dtype, got {labels.dtype}")


def check_layer(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    if input.dim() < 1 or input.shape[-1] < 1:
        raise ValueError(f"input must have shape (..., D) with D >= 1, got {tuple(input.shape)}")
    features = input.shape[-1]
    if linear_weight.dim() != 2 or linear_weight.shape[1] != features or len(linear_weight) < 1:
        raise ValueError(
            f"linear_weight must have shape (C_r, D={features}) with C_r >= 1, got {tuple(linear_weight.shape)}"
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:1]:
        raise ValueError(f"linear_bias must have shape (C_r={len(linear_weight)},), got {tuple(linear_bias.shape)}")


def check_tensors(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weights: Tensor | None,
) -> None:
    check_labels(input, target)
    check_layer(input, linear_weight, linear_bias)
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"target must have the shape of input {tuple(input.shape)} without its last dimension (class indices), "
            f"got {tuple(target.shape)}"
        )
    if weight is not None and not weight.is_floating_point():
        raise ValueError(f"weight must have a floating-point dtype, got {weight.dtype}")
    if token_weights is not None:
        check_token_weights(token_weights, target.shape)
    tensors = {
        "linear_weight": linear_weight,
        "linear_bias": linear_bias,
        "target": target,
        "weight": weight,
        "token_weights": token_weights,
    }
    check_like_input(input, tensors)


def check_like_input(input: Tensor, tensors: Mapping[str, Tensor | None]) -> None:
    """The device of the tensors, and the dtype of a layer's."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name} must be on the device of input, {input.device}, got {tensor.device}")
        if tensor is not None and name.startswith("linear") and tensor.dtype != input.dtype:
            raise ValueError(f"{name} must have the dtype of input, {input.dtype}, got {tensor.dtype}")


def check_classes(name: str, labels: Tensor, kept: Tensor, classes: int) -> None:
    outside = (kept & ((labels < 0) | (labels >= classes))).nonzero()
    if len(outside) > 0:
        index = outside[0].tolist()
        value = int(labels[tuple(index)])
        raise IndexError(f"{name}{index or ''} = {value} is out of range for {classes} classes")
