"""PyTorch's own samples for cross_entropy, linear_cross_entropy and embedding, and its wrong calls, through ours.

They are the inputs that PyTorch tests its ops with; they ship in `torch.testing._internal`. Left out are
- of embedding: `padding_idx`, `max_norm`, `scale_grad_by_freq` and `sparse`, options of the gradient and of the table
  itself, which embedding_linear does not have;
- of linear_cross_entropy, second derivatives and vmap of the samples with `options`, which say how PyTorch is to chunk
  its work: its own has neither then, and for ours they are the samples without once more;
- of its wrong calls the text of the message.
"""

from __future__ import annotations

import functools
import sys
import unittest
from collections.abc import Callable, Iterator
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
def opinfos(name: str) -> list[Any]:
    """The variants of an op in PyTorch's table; of linear_cross_entropy, which torch 2.11 does not have, none there."""
    try:
        import expecttest  # noqa: F401
    except ModuleNotFoundError:
        # Beside the samples are base classes of tests, for which torch asks for it. They have no need of it.
        sys.modules["expecttest"] = ModuleType("expecttest")
        sys.modules["expecttest"].TestCase = unittest.TestCase  # type: ignore[attr-defined]
    from torch.testing._internal.common_methods_invocations import op_db

    return [info for info in op_db if info.name == name]


def samples(name: str, dtype: torch.dtype) -> Iterator[Any]:
    for info in opinfos(name):
        assert info.supports_autograd
        yield from info.sample_inputs(device, dtype, requires_grad=True)


class Call:
    """One of PyTorch's samples: its tensors by position and name, and what else it has."""

    def __init__(self, sample: Any) -> None:
        self.positional = len(sample.args) + 1
        given = {**dict(enumerate((sample.input, *sample.args))), **sample.kwargs}
        self.tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
        self.others = {key: value for key, value in given.items() if key not in self.tensors}
        self.wanted = [key for key, value in self.tensors.items() if value.requires_grad]

    def leaves(self, dtype: torch.dtype) -> dict[Any, Tensor]:
        return {key: self.tensors[key].detach().to(dtype).requires_grad_() for key in self.wanted}

    def run(self, function: Callable[..., Tensor], leaves: dict[Any, Tensor], *, dtype: torch.dtype) -> Tensor:
        constants = {
            key: value.detach().to(dtype) if value.is_floating_point() else value for key, value in self.tensors.items()
        }
        given = {**self.others, **constants, **leaves}
        keywords = {key: value for key, value in given.items() if isinstance(key, str)}
        return function(*(given[position] for position in range(self.positional)), **keywords)


def compare(call: Call, ours: Callable[..., Tensor], torchs: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Values and gradients."""

    def results(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = call.leaves(dtype)
        value = call.run(function, leaves, dtype=dtype)
        return [value.detach(), *torch.autograd.grad(value, list(leaves.values()), torch.ones_like(value))]

    truth = results(torchs, torch.float64)
    for name, found, expected, true in zip(
        ["value", *call.wanted], results(ours, dtype), results(torchs, dtype), truth, strict=True
    ):
        finite = true.nan_to_num(0.0, 0.0, 0.0).abs()
        size = max(1.0, float(finite.max()) if finite.numel() else 1.0)
        assert_as_good_as_torch(found, true, expected, TOLERANCES[dtype] * size, str(name))


def compare_second_derivatives(call: Call, ours: Callable[..., Tensor], torchs: Callable[..., Tensor]) -> None:
    def results(function: Callable[..., Tensor]) -> list[Tensor]:
        leaves = list(call.leaves(torch.float64).values())
        value = call.run(function, dict(zip(call.wanted, leaves, strict=True)), dtype=torch.float64)
        first = torch.autograd.grad(value.sin().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves, materialize_grads=True))

    torch.testing.assert_close(results(ours), results(torchs), rtol=1e-10, atol=1e-11)


def compare_vmap(call: Call, ours: Callable[..., Tensor], torchs: Callable[..., Tensor]) -> None:
    """Mapped over all differentiable tensors, and the gradients of each sample, against one after the other."""
    stacks = [torch.stack([leaf.detach(), leaf.detach().flip(0)]) for leaf in call.leaves(torch.float64).values()]

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *leaves: call.run(function, dict(zip(call.wanted, leaves, strict=True)), dtype=torch.float64)

    def gradients(function: Callable[..., Tensor]) -> Callable[..., Any]:
        total = of(function)
        return torch.func.grad(lambda *leaves: total(*leaves).sum(), tuple(range(len(stacks))))

    expected = [of(torchs)(*each) for each in zip(*stacks, strict=True)]
    close = functools.partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)
    close(torch.vmap(of(ours))(*stacks), torch.stack(expected))
    one_by_one = [gradients(torchs)(*each) for each in zip(*stacks, strict=True)]
    close(torch.vmap(gradients(ours))(*stacks), tuple(map(torch.stack, zip(*one_by_one, strict=True))))


def calls(name: str, dtype: torch.dtype, at_least: int) -> list[Call]:
    found = [Call(sample) for sample in samples(name, dtype)]
    assert len(found) >= at_least
    return found


@every_dtype
def test_cross_entropy(dtype: torch.dtype) -> None:
    for call in calls("nn.functional.cross_entropy", dtype, 20):
        compare(call, ops.cross_entropy, F.cross_entropy, dtype)


def test_derivatives_and_maps_of_cross_entropy() -> None:
    for call in calls("nn.functional.cross_entropy", torch.float64, 20):
        compare_second_derivatives(call, ops.cross_entropy, F.cross_entropy)
        compare_vmap(call, ops.cross_entropy, F.cross_entropy)


def torchs_linear_cross_entropy(*arguments: Any, options: Any = None, **keywords: Any) -> Tensor:
    """PyTorch's, never chunked, which rounds otherwise."""
    return F.linear_cross_entropy(*arguments, **keywords)


@every_dtype
def test_linear_cross_entropy(dtype: torch.dtype) -> None:
    if hasattr(F, "linear_cross_entropy"):
        for call in calls("nn.functional.linear_cross_entropy", dtype, 100):
            compare(call, ops.linear_cross_entropy, torchs_linear_cross_entropy, dtype)


def test_derivatives_and_maps_of_linear_cross_entropy() -> None:
    if hasattr(F, "linear_cross_entropy"):
        for call in calls("nn.functional.linear_cross_entropy", torch.float64, 100):
            if "options" in call.others:
                continue
            compare_second_derivatives(call, ops.linear_cross_entropy, torchs_linear_cross_entropy)
            compare_vmap(call, ops.linear_cross_entropy, torchs_linear_cross_entropy)


def test_wrong_calls_of_linear_cross_entropy() -> None:
    for info in opinfos("nn.functional.linear_cross_entropy"):
        wrong = list(info.error_inputs(device))
        assert len(wrong) >= 6
        for each in wrong:
            sample = each.sample_input
            for requires_grad in (False, True):
                input = sample.input.detach().requires_grad_(requires_grad)
                with pytest.raises(each.error_type):
                    ops.linear_cross_entropy(input, *sample.args, **sample.kwargs)


@every_dtype
def test_embedding(dtype: torch.dtype) -> None:
    """An embedding is an embedding_linear of one position, with the identity for its layer."""
    count = 0
    for call in calls("nn.functional.embedding", dtype, 3):
        if not {"padding_idx", "max_norm", "scale_grad_by_freq", "sparse"}.isdisjoint(call.others):
            continue

        def layer(table: Tensor, ids: Tensor) -> Tensor:
            identity = torch.eye(table.shape[1], dtype=table.dtype, device=device)
            return ops.embedding_linear(ids.unsqueeze(-1), table, identity, activation="none")

        compare(call, layer, lambda table, ids: F.embedding(ids, table), dtype)
        count += 1
    assert count >= 3
