"""Log-probabilities of rows whose classes are spread over the processes of a group: what _vocab_parallel is to losses.

Of a row's logits y, softcapped and not yet divided by the temperature, rank r has the maximum m_r, and with
b = (y - m_r) / temperature the sums s_r = sum_c e^b_c and p_r = sum_c e^b_c b_c. Under the maximum of all, m, with
d_r = (m_r - m) / temperature, they are e^d_r s_r and e^d_r (p_r + d_r s_r), and with s and p, the sums of those:

    logsumexp = m / temperature + log(s)    entropy = log(s) - p / s    log_prob = (y_id - m) / temperature - log(s)

For the argmax a rank tells its largest logit and the first class that has it. For the rank of the first id it counts
the logits above that id's, which it has to know before: the first message, computed from the rows of the weight that
belong to these ids. That logit then takes its place among the row's, so that everything is of the same numbers, however
a product of matrices rounds.

With the upstream gradients u_k, h and l of log_prob_k, entropy and logsumexp:

    d / d z_c = sum_k u_k [c = id_k] + softmax_c (l - sum_k u_k - h (b_c - p / s))    b_c = (y_c - m) / temperature
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from charlm.ops._log_probs import LogProbs
from charlm.ops._vocab_parallel import (
    LayerGradients,
    all_gather,
    capped,
    check_classes,
    check_labels,
    check_layer,
    check_like_input,
    chunks,
    compute_dtype,
    owned,
    uncapped,
)
from charlm.ops.reference import _check_option

# So far below the maximum e^b is 0, and b finite: 0 times it is 0, as the limit of p log p is.
_FAR_BELOW = -10000.0
# A message has numbers of one dtype; class numbers and counts travel as the bits of these integers.
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass(frozen=True)
class Chosen:
    """Which ids, of which softmax.

    Attributes:
        shape: that in which ids came.
        ids: (N, K) classes, 0 where ignored.
        kept: (N, K) bool, whether they are not.
        counts: (N,) bool, whether a row has an id that is kept, or K = 0.
        first: the first class of this rank.
        partial_input_gradient: leave the input's gradient as each rank's part of a sum.
    """

    shape: torch.Size
    ids: Tensor
    kept: Tensor
    counts: Tensor
    first: int
    temperature: float
    softcap: float | None
    group: dist.ProcessGroup | None
    partial_input_gradient: bool = False

    @classmethod
    def of(
        cls,
        input: Tensor,
        ids: Tensor,
        *,
        ignore_index: int,
        classes: int,
        temperature: float,
        softcap: float | None,
        **others: Any,
    ) -> Chosen:
        """Of rows (..., D) and ids (...) or (..., K), which are checked; the rest is as in the attributes."""
        for name, value in {"temperature": temperature, "softcap": softcap or 0.0}.items():
            _check_option(name, value, input.dtype)
        classes_of_ids = ids.long()
        kept = classes_of_ids != ignore_index
        check_classes("ids", classes_of_ids, kept, classes)
        per_row = ids.shape[-1] if ids.dim() == input.dim() else 1
        rows = math.prod(input.shape[:-1])
        kept = kept.reshape(rows, per_row)
        return cls(
            shape=ids.shape,
            ids=classes_of_ids.reshape(rows, per_row).where(kept, 0),
            kept=kept,
            counts=kept.any(1) if per_row > 0 else kept.new_ones(rows),
            temperature=temperature,
            softcap=softcap,
            **others,
        )

    def own_ids(self, own_classes: int) -> tuple[Tensor, Tensor]:
        """(N, K) the ids, counted from this rank's first class, and whether each is one of this rank's; else 0."""
        return owned(self.ids, self.kept, self.first, own_classes)


def log_probs_of_rows(
    input: Tensor, linear_weight: Tensor | None, linear_bias: Tensor | None, chosen: Chosen
) -> LogProbs:
    """The results in the dtype computed in; without `linear_weight` of logits (..., C_r) in `input`."""
    leading = input.shape[:-1]
    rows = input.reshape(math.prod(leading), input.shape[-1])
    log_probs, *others = _VocabParallelLogProbs.apply(rows, linear_weight, linear_bias, chosen)
    return LogProbs(log_probs.reshape(chosen.shape), *(other.reshape(leading) for other in others))


class _VocabParallelLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, linear_weight: Tensor | None, linear_bias: Tensor | None, chosen: Chosen
    ) -> tuple[Tensor, ...]:
        layer = _Layer.of(input, linear_weight, linear_bias, chosen)
        sums = all_gather(_own_sums(layer, chosen), chosen.group)
        shifts, own_sums, own_products, largest = sums[:, :4].unbind(1)
        argmaxes, above = sums[:, 4:6].view(_INTEGERS[sums.dtype]).unbind(1)
        id_logits = sums[:, 6:].sum(0).T

        shift = shifts.amax(0)
        change = _below(shifts, shift, chosen.temperature)
        factors = change.exp()
        total = (own_sums * factors).sum(0)
        mean = ((own_products + change * own_sums) * factors).sum(0) / total
        # logsumexp = shift / temperature + log_sum, apart so that y - shift cancels exactly. It is infinite where a
        # logit is, and what depends on differences from it NaN.
        log_sum = total.log().where(total < math.inf, math.nan)
        logsumexp = torch.where(total == math.inf, math.inf, shift / chosen.temperature + log_sum)
        log_probs = id_logits.sub_(shift[:, None]).div_(chosen.temperature).sub_(log_sum[:, None])
        argmax = argmaxes.gather(0, largest.argmax(0, keepdim=True)).squeeze(0).long()
        first_kept = chosen.kept[:, :1].any(1)  # not where K = 0
        ctx.save_for_backward(*layer.tensors(), shift, log_sum, mean)
        ctx.chosen = chosen
        ctx.set_materialize_grads(False)
        results = (
            log_probs.where(chosen.kept, 0.0),
            (log_sum - mean).where(chosen.counts, 0.0),
            logsumexp.where(chosen.counts, 0.0),
            argmax.where(chosen.counts, -1),
            above.sum(0).where(first_kept, -1),
        )
        ctx.mark_non_differentiable(*results[3:])
        return results

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("log-probabilities of classes that are spread over processes have no second derivative")
        *tensors, shift, log_sum, mean = ctx.saved_tensors
        chosen: Chosen = ctx.chosen
        layer = _Layer(*tensors)
        ids, is_own = chosen.own_ids(layer.classes)
        of_ids, constant, linear = _upstream(upstream, chosen, mean)
        of_own_ids = of_ids.where(is_own, 0.0)

        gradients = LayerGradients(layer.input, layer.linear_weight, layer.linear_bias, ctx.needs_input_grad)
        for rows in chunks(len(ids), layer.classes, shift.itemsize):
            logits, slope = capped(layer.uncapped(rows, chosen), chosen.softcap)
            below = _below(logits, shift[rows, None], chosen.temperature)
            gradient = (below - log_sum[rows, None]).exp_()
            gradient *= below.mul_(linear[rows, None]).add_(constant[rows, None])
            gradient.scatter_add_(1, ids[rows], of_own_ids[rows])
            if slope is not None:
                gradient *= slope
            # A row that does not count may have NaN.
            gradients.add(rows, gradient.div_(chosen.temperature).masked_fill_(~chosen.counts[rows, None], 0.0))
        if not chosen.partial_input_gradient:
            gradients.sum_of_input(chosen.group)
        return *gradients.totals(), None


@dataclass(frozen=True)
class _Layer:
    """What the logits of this rank's classes come from; without `linear_weight` they are the input.

    Attributes:
        input: (N, D), or (N, C_r).
        first_logits: (N,) that of each row's first id before the cap, in the dtype computed in; 0 where there is none.
    """

    input: Tensor
    linear_weight: Tensor | None
    linear_bias: Tensor | None
    first_logits: Tensor

    @classmethod
    def of(cls, input: Tensor, linear_weight: Tensor | None, linear_bias: Tensor | None, chosen: Chosen) -> _Layer:
        """With the first ids' logits from the ranks that have them: one message."""
        first_logits = input.new_zeros(len(input), dtype=compute_dtype(input))
        layer = cls(input, linear_weight, linear_bias, first_logits)
        ids, is_own = chosen.own_ids(layer.classes)
        own_rows = is_own[:, :1].any(1).nonzero().squeeze(1)
        for chunk in chunks(len(own_rows), input.shape[1], first_logits.itemsize):
            rows = own_rows[chunk]
            first_logits[rows] = layer._logit_of_each(rows, ids[rows, 0])
        dist.all_reduce(first_logits, group=chosen.group)
        return layer

    @property
    def classes(self) -> int:
        return self.input.shape[1] if self.linear_weight is None else self.linear_weight.shape[0]

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.input, self.linear_weight, self.linear_bias, self.first_logits

    def uncapped(self, rows: slice, chosen: Chosen) -> Tensor:
        """The logits of these rows before the cap, as new memory: (rows, C_r)."""
        logits = uncapped(self.input[rows], self.linear_weight, self.linear_bias)
        ids, is_own = owned(chosen.ids[rows, :1], chosen.kept[rows, :1], chosen.first, self.classes)
        first_logits = self.first_logits[rows, None].expand_as(ids)
        return logits.scatter_(1, ids, first_logits.where(is_own, logits.gather(1, ids)))

    def _logit_of_each(self, rows: Tensor, classes: Tensor) -> Tensor:
        """That of one of this rank's classes for each of the rows, rounded as those of all classes are."""
        dtype = self.first_logits.dtype
        if self.linear_weight is None:
            return self.input[rows, classes].to(dtype)
        logits = (self.input[rows].to(dtype) * self.linear_weight[classes].to(dtype)).sum(1)
        if self.linear_bias is not None:
            logits += self.linear_bias[classes]
        return logits.to(self.input.dtype).to(dtype)


def _own_sums(layer: _Layer, chosen: Chosen) -> Tensor:
    """What this rank tells of its classes: (6 + K, N).

    Its maximum, sum of e^b and sum of e^b b; its largest logit before the cap, the class that has it, and how many are
    above the first id's; the logits of the ids that it has, 0 for those of others.
    """
    ids, is_own = chosen.own_ids(layer.classes)
    first_logits = layer.first_logits
    own = first_logits.new_zeros((6 + ids.shape[1], len(ids)))
    maximum, total, product, largest = own[:4]
    argmax, above = own[4:6].view(_INTEGERS[own.dtype])
    for numbers in (maximum, largest):
        numbers.fill_(-math.inf)  # stays so where this rank has no class
    for rows in chunks(len(ids), layer.classes, own.itemsize):
        logits = layer.uncapped(rows, chosen)
        above[rows] = layer.classes - (logits <= first_logits[rows, None]).sum(1)
        largest[rows], place = logits.nan_to_num(-math.inf, math.inf, -math.inf).max(1)
        argmax[rows] = chosen.first + place
        logits, _ = capped(logits, chosen.softcap)
        own[6:, rows] = logits.gather(1, ids[rows]).T
        maximum[rows] = logits.gather(1, place[:, None]).squeeze(1)
        below = _below(logits, maximum[rows, None], chosen.temperature)
        terms = below.exp()
        total[rows] = terms.sum(1)
        product[rows] = terms.mul_(below).sum(1)
    own[6:].masked_fill_(~is_own.T, 0.0)
    return own


def _below(logits: Tensor, maximum: Tensor, temperature: float) -> Tensor:
    """b, in the memory of the logits; under an infinite maximum, as padding alone has, as if it were 0."""
    finite = maximum.where(maximum.isfinite(), 0.0)
    return logits.sub_(finite).div_(temperature).clamp_(min=_FAR_BELOW)


def _upstream(gradients: Sequence[Tensor | None], chosen: Chosen, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the ids (N, K), and constant and linear, (N,), so that softmax_c has constant + linear b_c."""
    of_ids, of_entropy, of_logsumexp = (
        mean.new_zeros(counted.shape) if gradient is None else gradient.where(counted, 0.0)
        for gradient, counted in zip(gradients[:3], (chosen.kept, chosen.counts, chosen.counts), strict=True)
    )
    return of_ids, of_logsumexp - of_ids.sum(1) + of_entropy * mean, -of_entropy


def check_tensors(input: Tensor, linear_weight: Tensor, ids: Tensor, linear_bias: Tensor | None) -> None:
    check_labels(input, ids, "ids")
    check_layer(input, linear_weight, linear_bias)
    if ids.shape != input.shape[:-1] and not (ids.dim() == input.dim() and ids.shape[:-1] == input.shape[:-1]):
        raise ValueError(
            f"ids must have the shape of input {tuple(input.shape)} without its last dimension, or with K ids a row in "
            f"its place, got {tuple(ids.shape)}"
        )
    check_like_input(input, {"linear_weight": linear_weight, "linear_bias": linear_bias, "ids": ids})
