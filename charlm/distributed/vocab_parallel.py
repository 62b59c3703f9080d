"""The output layer and its loss or its log-probabilities where each process of a group holds a slice of the vocabulary.

First they agree.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from charlm.ops import _vocab_parallel_log_probs
from charlm.ops._arguments import check_output_dtype, loss_options
from charlm.ops._log_probs import LogProbs, log_probs_options
from charlm.ops._vocab_parallel import DTYPES, Loss, all_gather, check_tensors, row_losses
from charlm.ops._vocab_parallel_log_probs import Chosen, log_probs_of_rows


def vocab_parallel_linear_cross_entropy(
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
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """:func:`charlm.ops.linear_cross_entropy` of a weight whose rows are spread over the processes of a group.

    Rank r holds the C_r classes that follow those of rank r-1; the slices may have any sizes. The formula is in
    `charlm.ops._vocab_parallel`, which never holds all logits of a rank. A call costs two messages, one of them of a
    few numbers, and backward one, the sum of the input's gradients.

    All processes of the group call it, and its backward, with the same ``input``, ``target``, ``token_weights`` and
    options. All get the same loss and the whole gradients of ``input`` and ``token_weights``; each gets those of its
    own slices.

    Args:
        input: (..., D), N rows; float32, float64, bfloat16 or float16. Logits of the last two are rounded as those of
            ``F.linear``, and the rest is float32.
        linear_weight: (C_r, D), at least one row; dtype of ``input``.
        target: class indices (...), any integer dtype, each in [0, C) or ``ignore_index``; C = sum_r C_r.
        linear_bias: (C_r,), dtype of ``input``.
        weight: weight of each class, (C,): of all of them, the same on every rank; floating point.
        token_weights: weight of each row, (...), floating point.
        reduction, ignore_index, label_smoothing, softcap, z_loss: as in :func:`charlm.ops.linear_cross_entropy`.
        group: the processes; None is the default group.

    Returns:
        A scalar, or (...) for "none"; dtype of ``input``.

    Raises:
        IndexError: a target is out of range.
        ValueError: an argument has the wrong shape, dtype, device or range, on any rank.
        RuntimeError: there is no process group; or backward runs with ``create_graph=True``: second derivatives do not
            cross processes.

    Source:
        Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, section 3: the output embedding split along the vocabulary
        and fused with the loss.
    """
    _check_process_group("vocab_parallel_linear_cross_entropy")
    error: TypeError | ValueError | None = None
    try:
        check_tensors(input, linear_weight, target, linear_bias, weight, token_weights)
        loss_options(ignore_index, reduction, label_smoothing, softcap, z_loss)
    except (TypeError, ValueError) as raised:
        error = raised
    first, classes = _own_classes(error, input, linear_weight, 1, group)
    loss = Loss.of(
        input,
        target,
        weight,
        token_weights,
        ignore_index=ignore_index,
        first=first,
        classes=classes,
        label_smoothing=label_smoothing,
        softcap=softcap,
        z_loss=z_loss,
        group=group,
    )
    losses = row_losses(input, linear_weight, linear_bias, loss)
    if reduction == "none":
        return losses.reshape(target.shape).to(input.dtype)
    total = losses.sum()
    return (total / loss.row_weights().sum() if reduction == "mean" else total).to(input.dtype)


def vocab_parallel_linear_log_probs(
    input: Tensor,
    linear_weight: Tensor,
    ids: Tensor,
    *,
    linear_bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    group: dist.ProcessGroup | None = None,
    output_dtype: torch.dtype | None = None,
) -> LogProbs:
    """:func:`charlm.ops.linear_log_probs` of a weight whose rows are spread over the processes of a group.

    As in :func:`vocab_parallel_linear_cross_entropy`, the slices may have any sizes, and no rank ever holds all of its
    logits. The formula is in `charlm.ops._vocab_parallel_log_probs`. A call costs three messages, of a few numbers, of
    one number a row and of 6 + K a row; backward costs one, the sum of the input's gradients.

    All processes of the group call it, and its backward, with the same ``input``, ``ids`` and options. All get the same
    results and the whole gradient of ``input``; each gets the gradients of its own slices.

    Args:
        input: (..., D), N rows; float32, float64, bfloat16 or float16. Logits of the last two are rounded as those of
            ``F.linear``, and the rest is float32.
        linear_weight: (C_r, D), at least one row; dtype of ``input``.
        ids: classes (...), or (..., K) for K of them a row, any integer dtype, each in [0, C) or ``ignore_index``; C =
            sum_r C_r.
        linear_bias: (C_r,), dtype of ``input``.
        temperature, softcap, ignore_index, output_dtype: as in :func:`charlm.ops.linear_log_probs`.
        group: the processes; None is the default group.

    Returns:
        The named tuple of :func:`charlm.ops.log_probs`; argmax is a class among those of all ranks. Of classes whose
        logits are equal but for rounding, argmax and rank may take any for the larger.

    Raises:
        IndexError: an id is out of range.
        ValueError: an argument has the wrong shape, dtype, device or range, on any rank.
        TypeError: an option is no number, or a bool.
        RuntimeError: there is no process group; or backward runs with ``create_graph=True``: second derivatives do not
            cross processes.

    Source:
        Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, section 3, for the split along the vocabulary.
    """
    _check_process_group("vocab_parallel_linear_log_probs")
    error: TypeError | ValueError | None = None
    try:
        _vocab_parallel_log_probs.check_tensors(input, linear_weight, ids, linear_bias)
        log_probs_options(ignore_index, temperature, softcap)
        if output_dtype is not None:
            check_output_dtype(output_dtype)
    except (TypeError, ValueError) as raised:
        error = raised
    ids_per_row = ids.shape[-1] if error is None and ids.dim() == input.dim() else 1
    first, classes = _own_classes(error, input, linear_weight, ids_per_row, group)
    chosen = Chosen.of(
        input,
        ids,
        ignore_index=ignore_index,
        first=first,
        classes=classes,
        temperature=temperature,
        softcap=softcap,
        group=group,
    )
    return log_probs_of_rows(input, linear_weight, linear_bias, chosen).to(output_dtype or input.dtype)


def _check_process_group(function: str) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(f"{function} needs a process group: call init_process_group first")


def _own_classes(
    error: TypeError | ValueError | None,
    input: Tensor,
    linear_weight: Tensor,
    labels_per_row: int,
    group: dist.ProcessGroup | None,
) -> tuple[int, int]:
    """The first class of this rank, and the number of classes of all ranks.

    Arguments that are wrong on one rank are an error on all of them, so that none is left waiting.
    """
    description = [1, 0, 0, 0, 0, 0]
    if error is None:
        rows, features = input[..., 0].numel(), input.shape[-1]
        description = [0, len(linear_weight), rows, features, DTYPES.index(input.dtype), labels_per_row]
    own = torch.tensor(description, device=input.device)
    of_ranks = all_gather(own, group)
    if error is not None:
        raise error
    failed, own_classes, *alike = of_ranks.T.tolist()
    if any(failed):
        raise ValueError(f"the arguments of rank {failed.index(1)} are wrong: its own error says which")
    names = ("number of rows of input", "size of the last dimension of input", "dtype of input", "number of ids a row")
    for name, values in zip(names, alike, strict=True):
        for rank, value in enumerate(values):
            if value != values[0]:
                first_value, other = (DTYPES[v] if name == "dtype of input" else v for v in (values[0], value))
                raise ValueError(
                    f"the {name} must be the same on all ranks, got {first_value} on rank 0 and {other} on rank {rank}"
                )
    return sum(own_classes[: dist.get_rank(group)]), sum(own_classes)
