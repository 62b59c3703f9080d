"""The ops in functions under `torch.compile`: one graph, forward and backward, with the values they have outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from charlm import ops
from charlm.ops import reference

_ROWS, _DIM, _CLASSES, _TOKENS = 37, 12, 29, 4


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def classes() -> Tensor:
    targets = torch.randint(_CLASSES, (_ROWS,))
    targets[3] = -100
    return targets


# A function of the module that holds the ops, with work for the compiler around the op, and its arguments.
CASES: dict[str, tuple[Callable[..., Tensor], Callable[[], tuple[Tensor, ...]]]] = {
    "cross_entropy": (
        lambda module, input, target: module.cross_entropy(2.0 * input, target, softcap=5.0, z_loss=1e-3) * 3.0,
        lambda: (leaf(_ROWS, _CLASSES), classes()),
    ),
    "cross_entropy, a loss a row": (
        lambda module, input, target: module.cross_entropy(input.sin(), target, reduction="none").square().sum(),
        lambda: (leaf(_ROWS, _CLASSES), classes()),
    ),
    "cross_entropy, probabilities": (
        lambda module, input, scores: module.cross_entropy(input, scores.softmax(dim=1), label_smoothing=0.1),
        lambda: (leaf(_ROWS, _CLASSES), leaf(_ROWS, _CLASSES)),
    ),
    "linear_cross_entropy": (
        lambda module, input, weight, bias, target: module.linear_cross_entropy(
            input.tanh(), weight, target, linear_bias=bias, label_smoothing=0.1
        ),
        lambda: (leaf(_ROWS, _DIM), leaf(_CLASSES, _DIM), leaf(_CLASSES), classes()),
    ),
    "linear_cross_entropy, a loss a row": (
        lambda module, input, weight, target: (
            module.linear_cross_entropy(input.tanh(), weight, target, reduction="none").square().sum()
        ),
        lambda: (leaf(_ROWS, _DIM), leaf(_CLASSES, _DIM), classes()),
    ),
    "mlp_cross_entropy": (
        lambda module, ids, target, *parameters: module.mlp_cross_entropy(ids, target, *parameters, softcap=5.0) * 3.0,
        lambda: (
            torch.randint(_CLASSES, (_ROWS, _TOKENS)),
            torch.randint(_CLASSES, (_ROWS,)),
            leaf(_CLASSES, 5),
            leaf(_DIM, 5 * _TOKENS),
            leaf(_DIM),
            leaf(_CLASSES, _DIM),
            leaf(_CLASSES),
        ),
    ),
    "embedding_linear": (
        lambda module, ids, table, weight, bias: (
            module.embedding_linear(ids, 2.0 * table, weight, bias).square().mean()
        ),
        lambda: (
            torch.randint(_CLASSES, (_ROWS, _TOKENS)),
            leaf(_CLASSES, 5),
            leaf(_DIM, 5 * _TOKENS),
            leaf(_DIM),
        ),
    ),
}


def assert_compiles(function: Callable[..., Tensor], arguments: tuple[Tensor, ...], backend: str) -> None:
    leaves = [argument for argument in arguments if argument.requires_grad]
    expected = function(reference, *arguments)
    expected_gradients = torch.autograd.grad(expected, leaves)

    compiled: Any = torch.compile(lambda *given: function(ops, *given), fullgraph=True, dynamic=False, backend=backend)
    for _ in range(2):
        loss = compiled(*arguments)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, leaves), expected_gradients)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*arguments), expected)


@pytest.mark.parametrize("case", CASES)
def test_each_op_is_traced_in_one_graph(case: str) -> None:
    """Without generating code for what is around the op, which takes far longer than tracing."""
    function, make_arguments = CASES[case]
    assert_compiles(function, make_arguments(), backend="aot_eager")


def test_a_model_of_all_ops_is_compiled_in_one_graph() -> None:
    def loss(module: Any, ids: Tensor, table: Tensor, weight: Tensor, output: Tensor, target: Tensor) -> Tensor:
        hidden = module.embedding_linear(ids, 2.0 * table, weight).sin()
        direct = module.cross_entropy(hidden @ output.T, target, softcap=5.0)
        return direct + 2.0 * module.linear_cross_entropy(hidden, output, target, z_loss=1e-3)

    ids = torch.randint(_CLASSES, (_ROWS, _TOKENS))
    arguments = ids, leaf(_CLASSES, 5), leaf(_DIM, 5 * _TOKENS), leaf(_CLASSES, _DIM), classes()
    assert_compiles(loss, arguments, backend="inductor")
