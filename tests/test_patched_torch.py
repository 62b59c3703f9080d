"""A program that puts our ops into the place of PyTorch's, or something else there: ours neither recurse nor change.

`F.cross_entropy = ops.cross_entropy` is how fused losses are often put into a model whose code is somebody else's. What
our ops compute in plain PyTorch, higher derivatives for instance, must not come back to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import (
    cross_entropy_sample,
    device,
    embedding_linear_sample,
    integers,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    normal,
)
from cases import mlp_cross_entropy_sample as mlp_sample
from torch import Tensor, nn

from charlm import ops
from charlm.models import MLP, NeuralBigram
from charlm.nn import CrossEntropyLoss
from charlm.ops import reference

SAMPLES = [
    cross_entropy_sample(4, 5, label_smoothing=0.1, z_loss=0.1, softcap=2.0, targets="ignored", weighted=True),
    cross_entropy_sample(4, 5, targets="probabilities"),
    linear_cross_entropy_sample(4, 3, 5),
    linear_cross_entropy_sample(4, 3, 5, reduction="none", targets="probabilities"),
    *(embedding_linear_sample(4, 2, 5, 3, 4, activation=name) for name in ("tanh", "relu", "gelu", "silu", "none")),
    mlp_sample(4, 2, 5, 3, 4, softcap=2.0),
    log_probs_sample(4, 5, temperature=0.5, softcap=2.0),
    linear_log_probs_sample(4, 3, 5, ids_per_row=2),
]


def refused(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("what a program has put into PyTorch was called")


def results() -> list[Tensor]:
    """Of every op: value, gradients, their derivatives, forward-mode and mapped gradients; of its twin the value."""
    found = []
    for sample in SAMPLES:
        leaves = sample.leaves()
        function: Callable[..., Tensor] = getattr(ops, sample.op)

        def call(*values: Tensor, sample: Any = sample, function: Any = function) -> Tensor:
            return sample.call(function, dict(zip(sample.differentiable, values, strict=True)))

        value = call(*leaves.values())
        first = torch.autograd.grad(value.sum(), list(leaves.values()), create_graph=True)
        total = sum(g.square().sum() for g in first)
        found += [value, *first, *torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)]
        values = tuple(leaf.detach() for leaf in leaves.values())
        found.append(torch.func.jvp(call, values, values)[1])
        stacks = [torch.stack([value, value.flip(0)]) for value in values]
        found += torch.vmap(torch.func.grad(lambda *v, call=call: call(*v).sum(), tuple(range(len(values)))))(*stacks)
        found.append(sample.call(getattr(reference, sample.op), {}))
    return [tensor.detach() for tensor in found]


def assert_unchanged(expected: list[Tensor]) -> None:
    for found, before in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, before, rtol=0.0, atol=0.0)


def test_cross_entropy_in_the_place_of_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results()
    input, target = normal(4, 5).requires_grad_(), integers(5, (4,))
    second = torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, target), input)
    monkeypatch.setattr(F, "cross_entropy", ops.cross_entropy)
    monkeypatch.setattr(F, "linear_cross_entropy", ops.linear_cross_entropy, raising=False)
    monkeypatch.setattr(nn, "CrossEntropyLoss", CrossEntropyLoss)
    assert_unchanged(expected)
    torch.testing.assert_close(torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, target), input), second)
    value = F.linear_cross_entropy(input, normal(5, 5), target)
    assert torch.autograd.grad(value, input)[0].shape == input.shape
    assert nn.CrossEntropyLoss(label_smoothing=0.1)(input, target).ndim == 0


def test_the_forward_of_pytorchs_modules_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    input, target = normal(4, 5).requires_grad_(), integers(5, (4,))
    module = nn.CrossEntropyLoss(label_smoothing=0.1)
    expected, before = results(), torch.autograd.grad(module(input, target), input)

    def forward(self: nn.CrossEntropyLoss, input: Tensor, target: Tensor) -> Tensor:
        return ops.cross_entropy(input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing)

    monkeypatch.setattr(nn.CrossEntropyLoss, "forward", forward)
    monkeypatch.setattr(nn.Linear, "forward", refused)
    monkeypatch.setattr(nn.Embedding, "forward", refused)
    assert_unchanged(expected)
    torch.testing.assert_close(torch.autograd.grad(module(input, target), input, create_graph=True), before)


@pytest.mark.parametrize(
    "name",
    ["cross_entropy", "linear", "embedding", "nll_loss", "log_softmax", "softmax", "relu", "gelu", "silu", "one_hot"],
)
def test_something_else_in_the_place_of_a_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results()
    monkeypatch.setattr(F, name, refused)
    assert_unchanged(expected)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "logsumexp", "log_softmax", "addmm", "matmul", "exp"])
def test_something_else_in_the_place_of_a_function_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results()
    monkeypatch.setattr(torch, name, refused)
    assert_unchanged(expected)


@pytest.mark.parametrize("backend", ["eager", "ops"])
def test_models_in_a_patched_program(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts, targets = integers(5, (6, 2)), integers(5, (6,), seed=1)
    mlp = MLP(5, 2, 3, 4, backend=backend, softcap=2.0, direct=True).to(device)
    bigram = NeuralBigram(5, backend=backend).to(device)

    def losses_and_gradients() -> list[Tensor]:
        losses = [mlp.loss(contexts, targets), bigram.loss(contexts, targets)]
        found = torch.autograd.grad(sum(losses), [*mlp.parameters(), *bigram.parameters()], create_graph=True)
        return [*(loss.detach() for loss in losses), *(g.detach() for g in found)]

    expected = losses_and_gradients()
    monkeypatch.setattr(F, "cross_entropy", ops.cross_entropy)
    monkeypatch.setattr(F, "linear_cross_entropy", ops.linear_cross_entropy, raising=False)
    torch.testing.assert_close(losses_and_gradients(), expected, rtol=0.0, atol=0.0)
