"""TorchScript, which PyTorch deprecates for torch.export: what works of it, and the errors where it does not."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    Sample,
    cross_entropy_sample,
    embedding_linear_sample,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    same_bits,
)
from cases import mlp_cross_entropy_sample as mlp_sample
from torch import Tensor

from charlm import ops

SAMPLES = {
    "embedding_linear": embedding_linear_sample(4),
    "cross_entropy": cross_entropy_sample(4, 5, softcap=2.0),
    "linear_cross_entropy": linear_cross_entropy_sample(4),
    "mlp_cross_entropy": mlp_sample(4),
    "log_probs": log_probs_sample(4, 5, temperature=0.5),
    "linear_log_probs": linear_log_probs_sample(4),
}
every_op = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
pytestmark = [
    pytest.mark.cpu,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def function_of(sample: Sample) -> Callable[..., Tensor]:
    return lambda *values: sample.call(getattr(ops, sample.op), dict(zip(sample.differentiable, values, strict=True)))


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trace_without_gradients_is_saved_and_runs(sample: Sample, dtype: torch.dtype) -> None:
    sample = sample.to(dtype)
    values = tuple(sample.arguments[name] for name in sample.differentiable)
    with torch.no_grad():
        traced: Any = torch.jit.trace(function_of(sample), values)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    others = tuple(2.0 * value for value in values)
    assert same_bits(torch.jit.load(file)(*others), function_of(sample)(*others))


@every_op
def test_a_trace_with_gradients_says_what_to_do(sample: Sample) -> None:
    leaves = tuple(sample.leaves().values())
    with pytest.raises(RuntimeError, match=r"use torch\.export, or trace under torch\.no_grad"):
        torch.jit.trace(function_of(sample), leaves)
    assert function_of(sample)(*leaves).requires_grad


@every_op
def test_script_says_what_it_cannot_take(sample: Sample) -> None:
    with pytest.raises(torch.jit.frontend.NotSupportedError, match="keyword-only arguments with defaults"):
        torch.jit.script(getattr(ops, sample.op))
