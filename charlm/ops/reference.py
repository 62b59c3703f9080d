"""The definition of every op of `charlm.ops`, in plain PyTorch.

Each function has the name, the signature and the meaning of its fast twin; where the two differ, this file is right
and the kernel is wrong. Everything here is ordinary differentiable PyTorch: it runs on any device and in any floating
dtype, and autograd, double backward and `torch.func` work through it. Tests run it in float64 and call that the truth.

Shape letters: N rows, T context length, V vocabulary size, D embedding dimension, H hidden dimension, C
classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

# Bound when this is imported: a program may put our ops into the place of PyTorch's, and must not get the definition
# of an op that is the op.
from torch import Tensor, sigmoid, tanh
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import embedding as torch_embedding
from torch.nn.functional import gelu, linear, relu

from charlm.ops._arguments import (
    HALF,
    ArgumentError,
    check_chunking,
    check_output_dtype,
    check_token_weights,
    loss_options,
)
from charlm.ops._log_probs import LogProbs, log_probs_options

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions  # torch 2.13 has it

__all__ = [
    "cross_entropy",
    "embedding_linear",
    "linear_cross_entropy",
    "linear_log_probs",
    "log_probs",
    "mlp_cross_entropy",
]


def _identity(x: Tensor) -> Tensor:
    return x


def _silu(x: Tensor) -> Tensor:
    return x * sigmoid(x)  # F.silu has no forward-mode derivative of its backward


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": tanh,
    "relu": relu,
    "gelu": gelu,
    "silu": _silu,
    "none": _identity,
}


def embedding_linear(
    ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "tanh"
) -> Tensor:
    """The first layer of a neural language model: embed the T tokens of a context, concatenate, apply a dense layer.

    Equal to `activation(F.linear(F.embedding(ids, embedding).flatten(-2), weight, bias))`.

    Args:
        ids: (..., T), any integer dtype and any strides, values in [0, V); any leading dimensions, also none.
        embedding: (V, D), one row per token.
        weight: (H, T*D); columns t*D to (t+1)*D act on position t.
        bias: (H,) or None.
        activation: "tanh", "relu", "gelu" (exact, with erf), "silu" or "none".

    Returns:
        (..., H) in the dtype of `embedding`.

    Raises:
        IndexError: an id is outside [0, V).
        ValueError: `activation` is unknown.

    Source: Bengio et al. 2003, "A Neural Probabilistic Language Model", section 2, the term tanh(d + H x); GELU:
    Hendrycks and Gimpel 2016, arXiv:1606.08415; SiLU: Elfwing et al. 2017, arXiv:1702.03118.
    """
    if activation not in _ACTIVATIONS:
        raise ArgumentError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    contexts = torch_embedding(ids.long(), embedding).flatten(-2)
    return _ACTIVATIONS[activation](linear(contexts, weight, bias))


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
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """`F.cross_entropy` with three more options: weights of rows, a soft cap on the logits and a penalty on their
    log-partition function.

    With logits z (`input`, or `softcap * tanh(input / softcap)`) the loss of a row whose class is y is

        w * (weight[y] * (logsumexp(z) - z[y]) + z_loss * logsumexp(z)**2)

    with w its entry in `token_weights`, and zero, penalty included and whatever w is, where y is `ignore_index`. Class
    probabilities p replace the first term by sum_c weight[c] * p[c] * (logsumexp(z) - z[c]); label smoothing e replaces
    p by (1 - e) * p + e / C, where a class index stands for its one-hot row. `reduction="mean"` divides the sum over
    rows by the sum of w * weight[y] over the rows that are not ignored, or by that of w over all rows if `target` holds
    probabilities. With the defaults of `token_weights`, `softcap` and `z_loss` this is `F.cross_entropy`, edge results
    included: the mean over no rows is NaN, their sum is 0.

    A row that is ignored has gradient exactly 0, whatever comes from upstream: infinite or NaN, as from a loss divided
    by the number of rows that count, where none does. So has, where no row counts, everything else.

    Args:
        input: (C,), (N, C) or (N, C, d1, ...), floating.
        target: class indices, any integer dtype, of shape () or (1,), (N,) or (N, d1, ...), each in [0, C) or
            `ignore_index`; or class probabilities in the shape of `input`.
        weight: (C,) a factor per class in the dtype of `input`, or None. With class probabilities any mix of dtypes is
            promoted.
        ignore_index: class index whose rows count for nothing; applies to class indices only.
        reduction: "mean", "sum" or "none".
        label_smoothing: e in [0, 1].
        token_weights: a factor per row in the shape of class indices, () for one row, in any floating dtype, or None:
            all 1. Any finite numbers, 0 and negative ones too.
        softcap: positive bound on the absolute value of the logits, or None.
        z_loss: coefficient of the squared logsumexp.
        output_dtype: dtype of the result, which is then computed in float32 or wider; None for that of `input`.

    Returns:
        A scalar, or with `reduction="none"` one loss per row in the shape of class indices; the dtype of `input`.

    Raises:
        IndexError: a class index is outside [0, C) and is not `ignore_index`.
        ValueError: an option is out of range, also where it is infinite or 0 only in the dtype computed in.
        TypeError: an option is no number, or a bool.
        ValueError or RuntimeError: whatever else `F.cross_entropy` refuses (shapes, dtypes).

    Source: label smoothing: Szegedy et al. 2015, arXiv:1512.00567, section 7; soft cap: Gemma 2 report 2024,
    arXiv:2408.00118, section 2; z-loss: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, section 5.
    """
    loss_options(ignore_index, reduction, label_smoothing, softcap, z_loss)
    if output_dtype is not None:
        check_output_dtype(output_dtype)
        loss = cross_entropy(
            _widened(input),
            _widened(target),
            None if weight is None else _widened(weight),
            ignore_index,
            reduction,
            label_smoothing,
            token_weights=token_weights,
            softcap=softcap,
            z_loss=z_loss,
        )
        return loss.to(output_dtype)
    for name, value in {"label_smoothing": label_smoothing, "softcap": softcap or 0.0, "z_loss": z_loss}.items():
        _check_option(name, value, input.dtype)
    class_dim = 0 if input.dim() == 1 else 1
    if token_weights is not None:
        check_token_weights(token_weights, (*input.shape[:class_dim], *input.shape[class_dim + 1 :]))
    has_probabilities = target.is_floating_point()
    if not has_probabilities:
        if input.dim() == 1 and target.shape == (1,):
            target = target.squeeze(0)  # one row's class, which F.cross_entropy takes unless it is to be smoothed
        target = target.long()
        kept = target != ignore_index
        if not (softcap is None and z_loss == 0.0 and label_smoothing == 0.0 and token_weights is None):
            # Zero times infinity is NaN: what is ignored takes no part in the steps that torch does not know to skip.
            input = input.masked_fill(~kept.unsqueeze(class_dim), 0.0)
    logits = input if softcap is None else softcap * tanh(input / softcap)

    if z_loss == 0.0 and token_weights is None and (label_smoothing == 0.0 or has_probabilities):
        return torch_cross_entropy(
            logits,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    penalties = z_loss * logits.logsumexp(dim=class_dim).square() if z_loss > 0.0 else None
    if has_probabilities:
        row_losses = torch_cross_entropy(
            logits, target, weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
        )
        if penalties is not None:
            row_losses = row_losses + penalties
        row_weights = torch.ones_like(row_losses)
        if token_weights is not None:
            row_weights = token_weights.to(row_losses.dtype)
            row_losses = row_weights * row_losses
        # Counted by elements, as F.cross_entropy does: 0 / 0 without classes.
        denominator = row_weights.sum() if logits.shape[class_dim] > 0 else row_weights.new_tensor(torch.nan)
    else:
        row_losses = torch_cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction="none")
        if label_smoothing > 0.0:  # F.cross_entropy smooths class indices in place, which vmap refuses
            spread = _spread_loss(logits, weight, class_dim)
            row_losses = (1.0 - label_smoothing) * row_losses + torch.where(kept, label_smoothing * spread, 0.0)
        if penalties is not None:
            row_losses = row_losses + torch.where(kept, penalties, 0.0)
        row_weights = torch.ones_like(row_losses) if weight is None else weight[target.masked_fill(~kept, 0)]
        if token_weights is not None:
            factors = torch.where(kept, token_weights.to(row_losses.dtype), 0.0)
            row_losses = torch.where(kept, factors * row_losses, 0.0)
            row_weights = factors * row_weights
        denominator = torch.where(kept, row_weights, 0.0).sum()

    if reduction == "none":
        return row_losses
    return row_losses.sum() if reduction == "sum" else row_losses.sum() / denominator


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    token_weights: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """`cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)`: the output layer and its loss in one.

    All leading dimensions of `input` are rows; the classes are the last dimension of logits and of probabilities. As in
    `F.linear_cross_entropy`, a weight (C, d1, ..., D) is a layer for each of the positions d1, ...: `input` is (N, D)
    then, the logits are (N, C, d1, ...), and `target` is (N, d1, ...) or has the shape of the logits.

    Args:
        input: (..., D), any leading dimensions, also none.
        linear_weight: (C, D) or (C, d1, ..., D).
        target: class indices (...), any integer dtype, or class probabilities (..., C).
        linear_bias: (C,) or (C, d1, ...), or None.
        ignore_index: as in `cross_entropy`; None, which is -100, is all that goes with class probabilities.
        options: not read; PyTorch's say how it is to chunk its work.
        token_weights: a factor per row, (...) or with positions (N, d1, ...), as in `cross_entropy`.
        weight, reduction, label_smoothing, softcap, z_loss, output_dtype: as in `cross_entropy`.

    Returns:
        A scalar, or with `reduction="none"` the losses in the shape (...); the dtype of `input`.

    Raises:
        As `cross_entropy`; RuntimeError where the shapes of `input`, `linear_weight` and `linear_bias` do not fit.

    Source: `torch.nn.functional.linear_cross_entropy`; without the logits in memory: Wijmans et al. 2024, "Cut Your
    Losses in Large-Vocabulary Language Models", arXiv:2411.09009.
    """
    if options is not None:
        check_chunking(options)
    if ignore_index is None:
        ignore_index = -100
    elif target.is_floating_point():
        raise ArgumentError("ignore_index must be None where target has class probabilities, which cannot be ignored")
    if output_dtype is not None:
        input, linear_weight = _widened(input), _widened(linear_weight)
        linear_bias = None if linear_bias is None else _widened(linear_bias)
    positions = linear_weight.shape[:-1]
    if len(positions) > 1 and input.dim() != 2:
        raise ArgumentError(f"input must have shape (N, D) where linear_weight has positions, got {tuple(input.shape)}")
    logits = linear(input, linear_weight.flatten(0, -2), None if linear_bias is None else linear_bias.flatten())
    if len(positions) > 1:
        rows, classes = logits.unflatten(-1, positions), target
    elif input.dim() > 1:
        if token_weights is not None and token_weights.shape == input.shape[:-1]:
            token_weights = token_weights.flatten()
        rows, classes = logits.flatten(0, -2), target.flatten(0, -2 if target.is_floating_point() else -1)
    else:
        rows, classes = logits, target
    loss = cross_entropy(
        rows,
        classes,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        token_weights=token_weights,
        softcap=softcap,
        z_loss=z_loss,
        output_dtype=output_dtype,
    )
    return loss.reshape(logits.shape[:-1]) if reduction == "none" and len(positions) == 1 else loss


def log_probs(
    input: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    output_dtype: torch.dtype | None = None,
) -> LogProbs:
    """Log-probabilities of chosen classes, and what else a softmax gives: entropy, logsumexp, argmax and rank.

    With z = `input` / `temperature`, or `softcap * tanh(input / softcap) / temperature`, of a row:

        log_probs[k] = z[ids[k]] - logsumexp(z)
        entropy = -sum_c p[c] * log(p[c])     p = softmax(z)

    where p * log(p) is 0 if p is. argmax is the first class with the largest input that is a number, or 0 where none
    is; rank is how many classes have an input that is not at most that of the row's first id: 0 where none is more
    probable.

    An id that is `ignore_index` has log-probability 0, and rank -1 if it is the first. A row that has ids, all of them
    ignored, does not count: its entropy and logsumexp are 0 too, and its argmax is -1. What is ignored has gradient
    exactly 0, whatever comes from upstream.

    Args:
        input: logits (..., C), floating.
        ids: (...), or (..., K) for K of them a row, which may repeat, any integer dtype, each in [0, C) or
            `ignore_index`.
        temperature: positive divisor of the logits, after the soft cap.
        softcap: positive bound on the absolute value of the logits, or None.
        ignore_index: the id that counts for nothing.
        output_dtype: dtype of `log_probs`, `entropy` and `logsumexp`, which are then computed in float32 or wider; None
            for that of `input`.

    Returns:
        log_probs in the shape of `ids`; entropy, logsumexp, and, int64 and without a gradient, argmax and rank (...).

    Raises:
        RuntimeError: an id is outside [0, C) and is not `ignore_index`, or shapes do not fit.
        ValueError: an option is out of range, also where it is infinite or 0 only in the dtype computed in.
        TypeError: an option is no number, or a bool.
    """
    log_probs_options(ignore_index, temperature, softcap)
    if output_dtype is not None:
        check_output_dtype(output_dtype)
        found = log_probs(_widened(input), ids, temperature=temperature, softcap=softcap, ignore_index=ignore_index)
        return found.to(output_dtype)
    options = {"temperature": temperature, "1 / temperature": 1.0 / temperature, "softcap": softcap or 0.0}
    for name, value in options.items():
        _check_option(name, value, input.dtype)
    classes = input.shape[-1]
    # Compared as 64 bits: as an unsigned byte, 156 equals -100.
    several = (ids if ids.dim() == input.dim() else ids.unsqueeze(-1)).long()
    kept = several != ignore_index
    chosen = several.masked_fill(~kept, 0)
    counts = kept.any(-1) if several.shape[-1] > 0 else torch.ones_like(input[..., :0].sum(-1), dtype=torch.bool)
    input = input.masked_fill(~counts.unsqueeze(-1), 0.0)  # 0 times infinity is NaN: what is ignored takes no part
    with torch.no_grad():
        numbers = input.detach().masked_fill(input.isnan(), -torch.inf)
        argmax = numbers.argmax(-1) if classes > 0 else torch.full_like(counts, -1, dtype=torch.int64)
        argmax = argmax.masked_fill(~counts, -1)
        rank = torch.full_like(argmax, -1)
        if several.shape[-1] > 0 and classes > 0:
            at_most = input.detach() <= input.detach().gather(-1, chosen[..., :1])
            rank = (classes - at_most.sum(-1)).masked_fill(~kept[..., 0], -1)

    logits = (input if softcap is None else softcap * tanh(input / softcap)) / temperature
    of_classes = logits.log_softmax(-1)
    probabilities = of_classes.exp()
    entropy = -(probabilities * of_classes.masked_fill(probabilities == 0.0, 0.0)).sum(-1)
    of_ids = of_classes.gather(-1, chosen) if classes > 0 else input.sum(-1, keepdim=True).expand(several.shape)
    return LogProbs(
        log_probs=of_ids.masked_fill(~kept, 0.0).reshape(ids.shape),
        entropy=entropy.masked_fill(~counts, 0.0),
        logsumexp=logits.logsumexp(-1).masked_fill(~counts, 0.0),
        argmax=argmax,
        rank=rank,
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
    output_dtype: torch.dtype | None = None,
) -> LogProbs:
    """`log_probs(F.linear(input, linear_weight, linear_bias), ids, ...)`: of an output layer, without its logits.

    Args:
        input: (..., D), any leading dimensions, also none.
        linear_weight: (C, D).
        ids: (...), or (..., K), as in `log_probs`.
        linear_bias: (C,) or None.
        temperature, softcap, ignore_index, output_dtype: as in `log_probs`.

    Returns, Raises: as `log_probs`.
    """
    if output_dtype is not None:
        input, linear_weight = _widened(input), _widened(linear_weight)
        linear_bias = None if linear_bias is None else _widened(linear_bias)
    return log_probs(
        linear(input, linear_weight, linear_bias),
        ids,
        temperature=temperature,
        softcap=softcap,
        ignore_index=ignore_index,
        output_dtype=output_dtype,
    )


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
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """The loss of the whole Bengio/makemore network: embed, concatenate, tanh layer, output layer, cross-entropy.

    Equal to `linear_cross_entropy(embedding_linear(ids, embedding, weight1, bias1), weight2, target, linear_bias=bias2,
    ...)`.

    Args:
        ids: (..., T), any integer dtype, values in [0, V).
        target: (...), any integer dtype, each in [0, V) or `ignore_index`.
        embedding: (V, D).
        weight1: (H, T*D).
        bias1: (H,) or None.
        weight2: (V, H).
        bias2: (V,) or None.
        reduction, ignore_index: as in `cross_entropy`.
        softcap: positive bound on the absolute value of the logits, or None; 1.0 gives logits = tanh(W2 h + b2).
        output_dtype: dtype of the result, which is then computed in float32 or wider; None for that of `embedding`.

    Returns:
        A scalar, or with `reduction="none"` the losses in the shape (...); the dtype of `embedding`.

    Raises:
        As `embedding_linear` and `linear_cross_entropy`.

    Source: Bengio et al. 2003, "A Neural Probabilistic Language Model", section 2, without direct connections.
    """
    if output_dtype is not None:
        embedding, weight1 = _widened(embedding), _widened(weight1)
        bias1 = None if bias1 is None else _widened(bias1)
    hidden = embedding_linear(ids, embedding, weight1, bias1)
    return linear_cross_entropy(
        hidden,
        weight2,
        target,
        linear_bias=bias2,
        reduction=reduction,
        ignore_index=ignore_index,
        softcap=softcap,
        output_dtype=output_dtype,
    )


def _spread_loss(logits: Tensor, weight: Tensor | None, class_dim: int) -> Tensor:
    """The loss of each row against the uniform distribution."""
    log_probabilities = logits.log_softmax(class_dim)
    if weight is not None:
        log_probabilities = log_probabilities * weight.reshape(-1, *[1] * (logits.dim() - class_dim - 1))
    return -log_probabilities.mean(class_dim)


def _check_option(name: str, value: float, dtype: torch.dtype) -> None:
    """Raises ValueError where an option becomes infinite, or as good as 0, in the dtype that kernels compute in."""
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    limits = torch.finfo(computed)
    if value != 0.0 and (abs(value) < limits.tiny or abs(value) > limits.max):
        raise ArgumentError(
            f"{name} must be between {limits.tiny} and {limits.max} to be a number in {str(computed)[6:]}, got {value}"
        )


def _widened(tensor: Tensor) -> Tensor:
    # With float(), a program exported under autocast would refuse what has another dtype where it runs.
    return torch.ops.aten._to_copy.default(tensor, dtype=torch.float32) if tensor.dtype in HALF else tensor
