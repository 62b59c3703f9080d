"""What `torch.utils.flop_counter.FlopCounterMode` counts for the ops: what it counts for the same in plain PyTorch.

That is the products of matrices, of which a gradient takes one for each factor that wants it. What an op saves or
computes twice, as products of tokens that occur more than once or logits that were not kept, makes no difference: a
count over time is a rate that can be compared.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from charlm.ops import _extension  # noqa: F401  declares the ops

__all__: list[str] = []

_ops = torch.ops.charlm
Shape = Sequence[int]


@register_flop_formula(
    [_ops.cross_entropy_forward, _ops.cross_entropy_backward, _ops.log_probs_forward, _ops.log_probs_backward]
)
def _of_logits(*_: Any, out_shape: Any = None) -> int:
    return 0


@register_flop_formula(_ops.embedding_linear_forward)
def _embedding_linear_forward(ids: Shape, embedding: Shape, weight: Shape, *_: Any, out_shape: Any = None) -> int:
    return _product(ids, weight)


@register_flop_formula(_ops.embedding_linear_backward)
def _embedding_linear_backward(
    grad_output: Shape, output: Shape, ids: Shape, embedding: Shape, weight: Shape, *others: Any, out_shape: Any = None
) -> int:
    embedding_gradient, weight_gradient, _ = others[-3:]
    return _product(ids, weight) * (embedding_gradient + weight_gradient)


@register_flop_formula(_ops.linear_cross_entropy_forward)
def _linear_cross_entropy_forward(input: Shape, linear_weight: Shape, *others: Any, out_shape: Any = None) -> int:
    input_gradient, weight_gradient, _ = others[-3:]
    return _product(input, linear_weight) * (1 + input_gradient + weight_gradient)


@register_flop_formula(_ops.linear_cross_entropy_backward)
def _linear_cross_entropy_backward(
    grad_output: Shape, input: Shape, linear_weight: Shape, *others: Any, out_shape: Any = None
) -> int:
    input_gradient, weight_gradient, *_ = others[-4:]
    return _product(input, linear_weight) * (input_gradient + weight_gradient)


@register_flop_formula(_ops.linear_log_probs_forward)
def _linear_log_probs_forward(input: Shape, linear_weight: Shape, *_: Any, out_shape: Any = None) -> int:
    return _product(input, linear_weight)


@register_flop_formula([_ops.linear_log_probs_backward, _ops.linear_log_probs_backward_])
def _linear_log_probs_backward(*arguments: Any, out_shape: Any = None) -> int:
    input, linear_weight = arguments[3:5]
    input_gradient, weight_gradient, _ = arguments[-3:]
    return _product(input, linear_weight) * (input_gradient + weight_gradient)


@register_flop_formula(_ops.mlp_cross_entropy_forward)
def _mlp_cross_entropy_forward(
    ids: Shape,
    target: Shape,
    embedding: Shape,
    weight1: Shape,
    bias1: Shape | None,
    weight2: Shape,
    bias2: Shape | None,
    *options: Any,
    out_shape: Any = None,
) -> int:
    *_, compute_gradient = options
    return (_product(ids, weight1) + _product(ids, weight2)) * (3 if compute_gradient else 1)


@register_flop_formula(_ops.mlp_cross_entropy_backward)
def _mlp_cross_entropy_backward(
    grad_output: Shape,
    ids: Shape,
    target: Shape,
    embedding: Shape,
    weight1: Shape,
    bias1: Shape | None,
    weight2: Shape,
    *_: Any,
    out_shape: Any = None,
) -> int:
    return (_product(ids, weight1) + _product(ids, weight2)) * 2


def _product(rows: Shape, weight: Shape) -> int:
    """Of a matrix with a row for each of `rows` without its last dimension, and a weight."""
    return 2 * prod(rows[:-1]) * prod(weight)
