"""PyTorch's own samples for `nn.functional.cross_entropy` and `nn.functional.embedding`, through ours.

They are the inputs that PyTorch tests its ops with; they ship in `torch.testing._internal`.
"""

from __future__ import annotations

import functools
import sys
import unittest
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, assert_as_good_as_torch, device
from torch import Tensor

from charlm import ops

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@functools.cache
def opinfo(name: str) -> Any:
    try:
        import expecttest  # noqa: F401
    except ModuleNotFoundError:
        # Beside the samples are base classes of tests, for which torch asks for it. They have no need of it.
        sys.modules["expecttest"] = ModuleType("expecttest")
        sys.modules["expecttest"].TestCase = unittest.TestCase  # type: ignore[attr-defined]
    from torch.testing._internal.common_methods_invocations import op_db

    return next(info for info in op_db if info.name == name)


def samples(name: str, dtype: torch.dtype) -> Iterator[Any]:
    info = opinfo(name)
    assert info.supports_autograd
    yield from info.sample_inputs(device, dtype, requires_grad=True)


def compare(ours: Tensor, torchs: Tensor, truth: Tensor, leaves: tuple[list[Tensor], list[Tensor]], what: str) -> None:
    """Values and gradients; `leaves` in the dtype at hand and in float64."""
    given, wide = leaves
    tolerance = TOLERANCES[ours.dtype]

    def check(actual: Tensor, expected: Tensor, reference: Tensor, name: str) -> None:
        finite = reference.detach().nan_to_num(0.0, 0.0, 0.0).abs()
        size = max(1.0, float(finite.max()) if finite.numel() else 1.0)
        assert_as_good_as_torch(
            actual.detach(), reference.detach(), expected.detach(), tolerance * size, f"{what}: {name}"
        )

    check(ours, torchs, truth, "value")
    upstream = torch.ones_like(ours)
    actual = torch.autograd.grad(ours, given, upstream)
    expected = torch.autograd.grad(torchs, given, upstream)
    true = torch.autograd.grad(truth, wide, upstream.double())
    for index in range(len(given)):
        check(actual[index], expected[index], true[index], f"gradient {index}")


@every_dtype
def test_cross_entropy(dtype: torch.dtype) -> None:
    count = 0
    for sample in samples("nn.functional.cross_entropy", dtype):
        input, (target,), options = sample.input, sample.args, dict(sample.kwargs)
        leaves = [tensor for tensor in (input, target) if tensor.requires_grad]
        wide_input = input.detach().double().requires_grad_()
        wide_target = target.detach().double() if target.is_floating_point() else target
        wide_target = wide_target.requires_grad_() if target.requires_grad else wide_target
        wide_leaves = [tensor for tensor in (wide_input, wide_target) if tensor.requires_grad]
        weight = options.get("weight")
        wide_options = options if weight is None else {**options, "weight": weight.double()}
        compare(
            ops.cross_entropy(input, target, **options),
            F.cross_entropy(input, target, **options),
            F.cross_entropy(wide_input, wide_target, **wide_options),
            (leaves, wide_leaves),
            f"sample {count}",
        )
        count += 1
    assert count > 20


@every_dtype
def test_embedding(dtype: torch.dtype) -> None:
    """An embedding is an embedding_linear of one position, with the identity for its layer."""
    count = 0
    for sample in samples("nn.functional.embedding", dtype):
        table, (ids,) = sample.input, sample.args
        unsupported = {"padding_idx", "max_norm", "scale_grad_by_freq", "sparse"} & sample.kwargs.keys()
        if unsupported:  # options of the gradient and of the table itself, which embedding_linear does not have
            continue
        identity = torch.eye(table.shape[1], dtype=dtype, device=device)
        wide = table.detach().double().requires_grad_()
        compare(
            ops.embedding_linear(ids.unsqueeze(-1), table, identity, activation="none"),
            F.embedding(ids, table),
            F.embedding(ids, wide),
            ([table], [wide]),
            f"sample {count}",
        )
        count += 1
    assert count >= 3
