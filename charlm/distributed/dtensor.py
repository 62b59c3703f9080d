"""The ops of `charlm.ops` on DTensors: each rank computes on its own shards.

Along a dimension of the mesh an op is split in one of three ways:

- by rows, which are the dimensions of the targets, or of the ids but the last: the ranks run the kernels on theirs. A
  mean is that of all rows: what each rank adds up is divided by the number, or the weight, of the rows of all.
- by columns, classes or hidden units: the ranks have slices of the logits or of the weight. Losses are then computed as
  in `ops/_vocab_parallel.py`, log-probabilities as in `_vocab_parallel_log_probs.py` there; `embedding_linear` needs no
  message.
- not at all: every rank computes the same.

Logits, inputs or ids say whether by rows, and logits or the weight whether by columns, which wins where both do. All
other tensors are redistributed to fit. A gradient is placed as its argument, with two exceptions, as in torch: of a
Partial argument it is whole; and of one that every rank has whole while the op is split it is Partial, since each rank
knows only its part of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Shard

from charlm.distributed.split import Split, shards
from charlm.ops import _log_probs, _vocab_parallel, _vocab_parallel_log_probs
from charlm.ops._arguments import REDUCTIONS, LossOptions, check_token_weights, keywords
from charlm.ops._log_probs import LogProbs, LogProbsOptions
from charlm.ops._transforms import Op
from charlm.ops.cross_entropy import _OP as CROSS_ENTROPY
from charlm.ops.cross_entropy import _class_dim
from charlm.ops.embedding_linear import _ACTIVATIONS
from charlm.ops.embedding_linear import _OP as EMBEDDING_LINEAR
from charlm.ops.linear_cross_entropy import _OP as LINEAR_CROSS_ENTROPY
from charlm.ops.linear_log_probs import _call as call_linear_log_probs
from charlm.ops.log_probs import _call as call_log_probs
from charlm.ops.mlp_cross_entropy import _OP as MLP_CROSS_ENTROPY

_NONE, _MEAN, _SUM = (REDUCTIONS[name] for name in ("none", "mean", "sum"))


def cross_entropy(
    input: DTensor, target: Tensor, weight: Tensor | None, token_weights: Tensor | None, options: LossOptions
) -> Tensor:
    """:func:`charlm.ops.cross_entropy`. Logits that are sharded by classes are not gathered."""
    class_dim = _class_dim(input)
    classes = math.prod(input.shape[class_dim : class_dim + 1])
    row_dims = [dim for dim in range(input.ndim) if dim != class_dim]
    if input.ndim == 1 and target.shape == (1,) and not target.is_floating_point():
        target = target.squeeze(0)  # one row, whose target torch takes in either shape
    split = Split.of(input, row_dims, input if _may_split_classes(target, weight, token_weights) else None, class_dim)
    target, weight, token_weights = split.joined(
        split.by_columns_alone, target=target, weight=weight, token_weights=token_weights
    )
    rows = [input.shape[dim] for dim in row_dims]
    split.check_shape("target", target, rows, input.shape)
    split.check_shape("token_weights", token_weights, rows)

    own_input = split.local(input, lambda row: Shard(row_dims[row]), Shard(class_dim))
    like_input = target.ndim == input.ndim
    own_target = split.local(target, lambda row: Shard(row_dims[row] if like_input else row))
    own_weight, own_tokens = split.local(weight), split.local(token_weights, Shard)
    if split.column_dim is None:
        losses = _by_kernel(CROSS_ENTROPY, (own_input, own_target, own_weight, own_tokens), options)
    else:
        _vocab_parallel.check_labels(input, target)
        if token_weights is not None:
            check_token_weights(token_weights, rows)
        logits = own_input.movedim(class_dim, -1)
        losses = _by_class(split, logits, None, None, own_target, own_weight, own_tokens, classes, options)
    counted = _counted(own_target, own_weight, own_tokens, classes, options.ignore_index)
    return _reduced(split, losses, rows, options.reduction, own_target, counted)


def linear_cross_entropy(
    input: DTensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weights: Tensor | None,
    options: LossOptions,
) -> Tensor:
    """:func:`charlm.ops.linear_cross_entropy`. A weight that is sharded by classes is not gathered, nor are logits."""
    row_dims = range(input.ndim - 1)
    split = Split.of(input, row_dims, linear_weight if _may_split_classes(target, weight, token_weights) else None, 0)
    linear_weight, linear_bias = split.joined(linear_weight=linear_weight, linear_bias=linear_bias)
    target, weight, token_weights = split.joined(
        split.by_columns_alone, target=target, weight=weight, token_weights=token_weights
    )
    rows = input.shape[:-1]
    classes = math.prod(linear_weight.shape[:1])
    split.check_shape("target", target, rows, (*rows, classes))
    split.check_shape("token_weights", token_weights, rows)

    own_input = split.local(input, Shard)
    layer = split.local(linear_weight, column=Shard(0)), split.local(linear_bias, column=Shard(0))
    own_target = split.local(target, Shard)
    own_weight, own_tokens = split.local(weight), split.local(token_weights, Shard)
    if split.column_dim is None:
        tensors = (own_input, layer[0], own_target, layer[1], own_weight, own_tokens)
        losses = _by_kernel(LINEAR_CROSS_ENTROPY, tensors, options)
    else:
        _vocab_parallel.check_tensors(input, linear_weight, target, linear_bias, weight, token_weights)
        losses = _by_class(split, own_input, *layer, own_target, own_weight, own_tokens, classes, options)
    counted = _counted(own_target, own_weight, own_tokens, classes, options.ignore_index)
    return _reduced(split, losses, rows, options.reduction, own_target, counted)


def log_probs(input: DTensor, ids: Tensor, options: LogProbsOptions) -> LogProbs:
    """:func:`charlm.ops.log_probs`. Logits that are sharded by classes are not gathered."""
    class_dim = input.ndim - 1
    # Where there are no classes nothing is known of them that ranks could tell.
    split = Split.of(input, range(class_dim), input if input.numel() > 0 else None, class_dim)
    (ids,) = split.joined(split.by_columns_alone, ids=ids)
    rows = input.shape[:-1]
    split.check_shape("ids", ids, rows, (*rows, *ids.shape[-1:]))

    own_input, own_ids = split.local(input, Shard, Shard(class_dim)), split.local(ids, Shard)
    if split.column_dim is None:
        return _joint_log_probs(split, call_log_probs(own_input, own_ids, options), rows, ids.shape)
    _vocab_parallel.check_labels(input, ids, "ids")
    return _log_probs_by_class(split, own_input, None, None, own_ids, rows, ids.shape, input.shape[-1], options)


def linear_log_probs(
    input: DTensor, linear_weight: Tensor, ids: Tensor, linear_bias: Tensor | None, options: LogProbsOptions
) -> LogProbs:
    """:func:`charlm.ops.linear_log_probs`. A weight that is sharded by classes is not gathered, nor are logits."""
    split = Split.of(input, range(input.ndim - 1), linear_weight if linear_weight.numel() > 0 else None, 0)
    linear_weight, linear_bias = split.joined(linear_weight=linear_weight, linear_bias=linear_bias)
    (ids,) = split.joined(split.by_columns_alone, ids=ids)
    rows = input.shape[:-1]
    split.check_shape("ids", ids, rows, (*rows, *ids.shape[-1:]))

    own_input, own_ids = split.local(input, Shard), split.local(ids, Shard)
    layer = split.local(linear_weight, column=Shard(0)), split.local(linear_bias, column=Shard(0))
    if split.column_dim is None:
        found = call_linear_log_probs(own_input, layer[0], own_ids, layer[1], options)
        return _joint_log_probs(split, found, rows, ids.shape)
    _vocab_parallel_log_probs.check_tensors(input, linear_weight, ids, linear_bias)
    return _log_probs_by_class(split, own_input, *layer, own_ids, rows, ids.shape, linear_weight.shape[0], options)


def embedding_linear(ids: DTensor, embedding: Tensor, weight: Tensor, bias: Tensor | None, activation: int) -> Tensor:
    """:func:`charlm.ops.embedding_linear`. Of a weight that is sharded by its rows come shards of the hidden units."""
    split = Split.of(ids, range(ids.ndim - 1), weight, 0)
    embedding, weight, bias = split.joined(embedding=embedding, weight=weight, bias=bias)
    split.check_shape("bias", bias, weight.shape[:1])
    output = EMBEDDING_LINEAR.call(
        split.local(ids, Shard),
        split.local(embedding),
        split.local(weight, column=Shard(0)),
        split.local(bias, column=Shard(0)),
        activation,
    )
    return split.joint(output, (*ids.shape[:-1], weight.shape[0]), Shard, Shard(ids.ndim - 1))


def mlp_cross_entropy(
    ids: DTensor,
    target: Tensor,
    embedding: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    options: LossOptions,
) -> Tensor:
    """:func:`charlm.ops.mlp_cross_entropy`; where a weight is sharded by its rows, the two ops that it is equal to."""
    if shards(weight1, 0) or shards(weight2, 0):
        hidden: Any = embedding_linear(ids, embedding, weight1, bias1, _ACTIVATIONS["tanh"])
        return linear_cross_entropy(hidden, weight2, target, bias2, None, None, options)
    split = Split.of(ids, range(ids.ndim - 1))
    target, *parameters = split.joined(
        target=target, embedding=embedding, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2
    )
    rows = ids.shape[:-1]
    split.check_shape("target", target, rows)
    own_target = split.local(target, Shard)
    tensors = (split.local(ids, Shard), own_target, *map(split.local, parameters))
    losses = _by_kernel(MLP_CROSS_ENTROPY, tensors, options)
    counted = _counted(own_target, None, None, parameters[3].shape[0], options.ignore_index)
    return _reduced(split, losses, rows, options.reduction, own_target, counted)


def _counted(
    target: Tensor, weight: Tensor | None, token_weights: Tensor | None, classes: int, ignore_index: int
) -> Callable[[torch.dtype], Tensor] | None:
    """What this rank's rows count in a mean, as a function of the dtype that sums it; None where each counts 1."""
    if target.is_floating_point():
        return None if token_weights is None else lambda dtype: token_weights.to(dtype).sum()

    def count(dtype: torch.dtype) -> Tensor:
        labels = target.long()
        # On CUDA those that are out of range are no error, and count for nothing.
        counts = (labels != ignore_index) & (labels >= 0) & (labels < classes)
        if weight is None and token_weights is None:
            return counts.sum()
        each = counts.to(dtype) if weight is None else weight.to(dtype)[labels.where(counts, 0)].where(counts, 0.0)
        return (each if token_weights is None else each * token_weights.to(dtype).where(counts, 0.0)).sum()

    return count


def _may_split_classes(target: Tensor, *weights: Tensor | None) -> bool:
    """Probabilities, and weights that want a gradient, need all classes."""
    return not target.is_floating_point() and not any(w is not None and w.requires_grad for w in weights)


def _by_kernel(op: Op, tensors: Sequence[Any], options: LossOptions) -> Callable[[int], Tensor]:
    """This rank's loss by the op itself, as a function of the reduction."""

    def loss(reduction: int) -> Tensor:
        return op.call(*tensors, options._replace(reduction=reduction))

    return loss


def _by_class(
    split: Split,
    input: Tensor,
    linear_weight: Tensor | None,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    token_weights: Tensor | None,
    classes: int,
    options: LossOptions,
) -> Callable[[int], Tensor]:
    """As `_by_kernel`, of this rank's rows and the classes of all ranks of the dimension that splits them."""
    of_rows = keywords(options)
    del of_rows["reduction"]
    loss = _vocab_parallel.Loss.of(
        input,
        target,
        weight,
        token_weights,
        first=split.first_column(classes),
        classes=classes,
        group=split.mesh.get_group(split.column_dim),
        partial_input_gradient=True,
        **of_rows,
    )

    def losses(reduction: int) -> Tensor:
        rows = _vocab_parallel.row_losses(input, linear_weight, linear_bias, loss).reshape(target.shape)
        return rows if reduction == _NONE else rows.sum()

    return losses


def _reduced(
    split: Split,
    losses: Callable[[int], Tensor],
    rows: Sequence[int],
    reduction: int,
    target: Tensor,
    counted: Callable[[torch.dtype], Tensor] | None = None,
) -> Tensor:
    """The loss of all rows, whose shape is `rows`, from those of this rank's; without `counted` each counts 1."""
    if not split.is_split:
        return DTensor.from_local(losses(reduction), split.mesh, split.place(), run_check=False)
    if reduction == _NONE:
        return split.joint(losses(_NONE), rows, Shard)
    total = losses(_SUM)
    if reduction == _SUM:
        return split.joint(total, (), lambda row: Partial())
    number = total.new_tensor(math.prod(rows)) if counted is None else split.sum_over_rows(counted(total.dtype))
    # Apart where nothing counts, and so nothing has a gradient: that of the quotient would be 0 times inf.
    mean = (total / number.where(number != 0, 1)).where(number != 0, total.detach() / number)
    return split.joint(mean, (), lambda row: Partial("sum" if target.is_floating_point() else "avg"))


# Messages break a compiled graph in any case; and one that returned these results would fail where not all of them are
# differentiated: for the others its backward would be handed zeros that are no DTensors.
@torch.compiler.disable
def _log_probs_by_class(
    split: Split,
    input: Tensor,
    linear_weight: Tensor | None,
    linear_bias: Tensor | None,
    own_ids: Tensor,
    rows: torch.Size,
    ids: torch.Size,
    classes: int,
    options: LogProbsOptions,
) -> LogProbs:
    """As `_joint_log_probs`, of this rank's rows and the classes of all ranks of the dimension that splits them."""
    chosen = _vocab_parallel_log_probs.Chosen.of(
        input,
        own_ids,
        first=split.first_column(classes),
        classes=classes,
        group=split.mesh.get_group(split.column_dim),
        partial_input_gradient=True,
        **_log_probs.keywords(options),
    )
    own = _vocab_parallel_log_probs.log_probs_of_rows(input, linear_weight, linear_bias, chosen)
    return _joint_log_probs(split, own, rows, ids)


def _joint_log_probs(split: Split, own: LogProbs, rows: torch.Size, ids: torch.Size) -> LogProbs:
    """The results for all rows and ids, of these shapes, from those of this rank's."""
    log_probs, *others = own
    return LogProbs(split.joint(log_probs, ids, Shard), *(split.joint(other, rows, Shard) for other in others))
