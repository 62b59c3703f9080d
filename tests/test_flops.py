"""FLOPs of the ops, as `FlopCounterMode` counts them: those of the same in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    Sample,
    cross_entropy_sample,
    embedding_linear_sample,
    integers,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
    normal,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from charlm import ops
from charlm.ops import reference

SAMPLES = {
    "embedding_linear": embedding_linear_sample(123),
    "embedding_linear, few rows": embedding_linear_sample((5, 2), vocab_size=400, bias=False, activation="gelu"),
    "cross_entropy": cross_entropy_sample(9, 27),
    "cross_entropy, probabilities": cross_entropy_sample(9, 27, targets="probabilities"),
    "linear_cross_entropy, mean": linear_cross_entropy_sample(9, targets="ignored"),
    "linear_cross_entropy, none": linear_cross_entropy_sample((3, 2), reduction="none", softcap=2.0),
    "linear_cross_entropy, probabilities": linear_cross_entropy_sample(9, targets="probabilities"),
    "mlp_cross_entropy, sum": mlp_cross_entropy_sample(9, reduction="sum"),
    "mlp_cross_entropy, none": mlp_cross_entropy_sample(9, reduction="none"),
    "log_probs": log_probs_sample(9, 27),
    "linear_log_probs": linear_log_probs_sample((3, 2), ids_per_row=2, ignored=True),
}
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def flops(sample: Sample, namespace: Any, differentiable: tuple[str, ...]) -> int:
    """Of the op, and of backward where there is something to differentiate."""
    leaves = {name: value for name, value in sample.leaves().items() if name in differentiable}
    with FlopCounterMode(display=False) as counter:
        result = sample.call(getattr(namespace, sample.op), leaves)
        if leaves:
            result.sum().backward()
    return counter.get_total_flops()


@every_sample
def test_training_counts_as_in_pytorch(sample: Sample) -> None:
    assert flops(sample, ops, sample.differentiable) == flops(sample, reference, sample.differentiable)


@every_sample
def test_evaluation_counts_as_in_pytorch(sample: Sample) -> None:
    assert flops(sample, ops, ()) == flops(sample, reference, ())


@pytest.mark.parametrize(
    "name", ["embedding_linear", "linear_cross_entropy, mean", "linear_cross_entropy, none", "linear_log_probs"]
)
def test_a_gradient_that_nobody_wants_does_not_count(name: str) -> None:
    sample = SAMPLES[name]
    for wanted in sample.differentiable:
        assert flops(sample, ops, (wanted,)) == flops(sample, reference, (wanted,)), wanted


def test_a_small_layer_by_hand() -> None:
    input, weight = normal(8, 4).requires_grad_(), normal(5, 4).requires_grad_()

    def loss() -> Tensor:
        return ops.linear_cross_entropy(input, weight, integers(5, (8,)))

    with FlopCounterMode(display=False) as counter:
        loss().backward()
    assert counter.get_total_flops() == 3 * 2 * 8 * 4 * 5 == 960


def test_a_second_derivative_counts_what_pytorch_does_for_it() -> None:
    def count(namespace: Any) -> int:
        input, weight = normal(8, 4).requires_grad_(), normal(5, 4).requires_grad_()
        loss = namespace.linear_cross_entropy(input, weight, integers(5, (8,)))
        with FlopCounterMode(display=False) as counter:
            first = torch.autograd.grad(loss, [input, weight], create_graph=True)
            torch.autograd.grad(sum(g.square().sum() for g in first), [input, weight])
        return counter.get_total_flops()

    again = 2 * 8 * 4 * 5  # the logits, which the op has not kept
    assert count(ops) == count(reference) + again


def test_counting_changes_no_value() -> None:
    sample = SAMPLES["linear_cross_entropy, mean"]
    with FlopCounterMode(display=False):
        counted = sample.call(ops.linear_cross_entropy, {})
    torch.testing.assert_close(counted, sample.call(ops.linear_cross_entropy, {}), rtol=0.0, atol=0.0)
