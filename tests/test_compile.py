"""The ops in functions under `torch.compile`: one graph, forward and backward, with the values they have outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import device, integers
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, vmap
from torch.profiler import ProfilerActivity

from charlm import ops
from charlm.nn import EmbeddingLinear, LinearCrossEntropyLoss
from charlm.ops import reference

_ROWS, _DIM, _CLASSES, _TOKENS = 37, 12, 29, 4


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, device=device, requires_grad=True)


def classes(rows: int) -> Tensor:
    targets = integers(_CLASSES, (rows,))
    targets[1] = -100
    return targets


def total(results: ops.LogProbs) -> Tensor:
    """Of all that log_probs returns."""
    hits = (results.rank == 0).sum() + results.argmax.sum()
    return results.log_probs.exp().sum() + results.entropy.sin().sum() + results.logsumexp.square().sum() + hits


# A function of the module that holds the ops, with work for the compiler around the op, and arguments of so many rows.
CASES: dict[str, tuple[Callable[..., Tensor], Callable[[int], tuple[Tensor, ...]]]] = {
    "cross_entropy": (
        lambda module, input, target: module.cross_entropy(2.0 * input, target, softcap=5.0, z_loss=1e-3) * 3.0,
        lambda rows: (leaf(rows, _CLASSES), classes(rows)),
    ),
    "cross_entropy, a loss a row": (
        lambda module, input, target: module.cross_entropy(input.sin(), target, reduction="none").square().sum(),
        lambda rows: (leaf(rows, _CLASSES), classes(rows)),
    ),
    "cross_entropy, token weights": (
        lambda module, input, target, weights: module.cross_entropy(input, target, token_weights=2.0 * weights),
        lambda rows: (leaf(rows, _CLASSES), classes(rows), leaf(rows).detach() + 1.0),
    ),
    "cross_entropy, probabilities": (
        lambda module, input, scores: module.cross_entropy(input, scores.softmax(dim=1), label_smoothing=0.1),
        lambda rows: (leaf(rows, _CLASSES), leaf(rows, _CLASSES)),
    ),
    "linear_cross_entropy": (
        lambda module, input, weight, bias, target: module.linear_cross_entropy(
            input.tanh(), weight, target, linear_bias=bias, label_smoothing=0.1
        ),
        lambda rows: (leaf(rows, _DIM), leaf(_CLASSES, _DIM), leaf(_CLASSES), classes(rows)),
    ),
    "linear_cross_entropy, token weights": (
        lambda module, input, weight, target, weights: module.linear_cross_entropy(
            input.tanh(), weight, target, token_weights=2.0 * weights, reduction="sum"
        ),
        lambda rows: (leaf(rows, _DIM), leaf(_CLASSES, _DIM), classes(rows), leaf(rows).detach()),
    ),
    "linear_cross_entropy, a loss a row": (
        lambda module, input, weight, target: (
            module.linear_cross_entropy(input.tanh(), weight, target, reduction="none").square().sum()
        ),
        lambda rows: (leaf(rows, _DIM), leaf(_CLASSES, _DIM), classes(rows)),
    ),
    "mlp_cross_entropy": (
        lambda module, ids, target, *parameters: module.mlp_cross_entropy(ids, target, *parameters, softcap=5.0) * 3.0,
        lambda rows: (
            integers(_CLASSES, (rows, _TOKENS)),
            integers(_CLASSES, (rows,), seed=1),
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
        lambda rows: (
            integers(_CLASSES, (rows, _TOKENS)),
            leaf(_CLASSES, 5),
            leaf(_DIM, 5 * _TOKENS),
            leaf(_DIM),
        ),
    ),
    "log_probs": (
        lambda module, input, ids: total(module.log_probs(2.0 * input, ids, temperature=0.7)),
        lambda rows: (leaf(rows, _CLASSES), classes(rows)),
    ),
    "log_probs, the entropy alone": (
        lambda module, input, ids: module.log_probs(input.sin(), ids).entropy.mean(),
        lambda rows: (leaf(rows, _CLASSES), classes(rows)),
    ),
    "linear_log_probs": (
        lambda module, input, weight, bias, ids: total(
            module.linear_log_probs(input.tanh(), weight, ids, linear_bias=bias, softcap=5.0)
        ),
        lambda rows: (leaf(rows, _DIM), leaf(_CLASSES, _DIM), leaf(_CLASSES), integers(_CLASSES, (rows, 3))),
    ),
}


def assert_compiles(function: Callable[..., Tensor], arguments: tuple[Tensor, ...], backend: str) -> None:
    """As one graph, of our kernels and not of what they stand for, with the values of the reference."""
    leaves = [argument for argument in arguments if argument.requires_grad]
    expected = function(reference, *arguments)
    expected_gradients = torch.autograd.grad(expected, leaves)

    compiled: Any = torch.compile(lambda *given: function(ops, *given), fullgraph=True, dynamic=False, backend=backend)
    for _ in range(2):
        loss = compiled(*arguments)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, leaves), expected_gradients)
    with torch.no_grad(), torch.profiler.profile(activities=[ProfilerActivity.CPU], acc_events=True) as profile:
        torch.testing.assert_close(compiled(*arguments), expected)
    called = {event.key for event in profile.key_averages()}
    assert any(name.startswith("charlm::") for name in called)
    assert "aten::_log_softmax" not in called


@pytest.mark.parametrize("case", CASES)
def test_each_op_is_traced_in_one_graph(case: str) -> None:
    """Without generating code for what is around the op, which takes far longer than tracing."""
    function, make_arguments = CASES[case]
    assert_compiles(function, make_arguments(_ROWS), backend="aot_eager")


def test_a_model_of_all_ops_is_compiled_in_one_graph() -> None:
    def loss(module: Any, ids: Tensor, table: Tensor, weight: Tensor, output: Tensor, target: Tensor) -> Tensor:
        hidden = module.embedding_linear(ids, 2.0 * table, weight).sin()
        direct = module.cross_entropy(hidden @ output.T, target, softcap=5.0)
        chosen = module.linear_log_probs(hidden, output, target)
        penalty = chosen.log_probs.mean() - 0.1 * chosen.entropy.mean()
        return direct + penalty + 2.0 * module.linear_cross_entropy(hidden, output, target, z_loss=1e-3)

    ids = integers(_CLASSES, (_ROWS, _TOKENS))
    arguments = ids, leaf(_CLASSES, 5), leaf(_DIM, 5 * _TOKENS), leaf(_CLASSES, _DIM), classes(_ROWS)
    assert_compiles(loss, arguments, backend="inductor")


@pytest.mark.parametrize(("case", "dynamic"), [*((case, True) for case in CASES), ("linear_cross_entropy", None)])
def test_no_batch_size_is_compiled_for(case: str, dynamic: bool | None) -> None:
    function, make_arguments = CASES[case]
    counter = CompileCounterWithBackend("aot_eager")
    parameters = make_arguments(_ROWS)
    compiled: Any = torch.compile(
        lambda *given: function(ops, *given), fullgraph=True, dynamic=dynamic, backend=counter
    )
    for position, rows in enumerate((_ROWS, 5, 64, 2)):
        # Arguments without rows are parameters: the same in every call.
        arguments = tuple(
            old if old.shape[0] != _ROWS else new for old, new in zip(parameters, make_arguments(rows), strict=True)
        )
        leaves = [argument for argument in arguments if argument.requires_grad]
        loss, expected = compiled(*arguments), function(reference, *arguments)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves))
        if position == 1:
            compilations = counter.frame_count
    assert counter.frame_count == compilations


def test_transforms_inside_a_compiled_function() -> None:
    input, target, tangent = leaf(6, 5).detach(), integers(5, (6,)), leaf(6, 5).detach()

    def compiled(function: Callable[..., Any]) -> Any:
        return torch.compile(function, fullgraph=True, backend="aot_eager")

    def of(module: Any) -> dict[str, Callable[..., Any]]:
        return {
            "grad": lambda z: grad(module.cross_entropy)(z, target),
            "per sample": lambda z: vmap(grad(module.cross_entropy))(z, target),
            "jvp": lambda z: jvp(lambda y: module.cross_entropy(y, target), (z,), (tangent,)),
            "log_probs": lambda z: vmap(grad(lambda y, ids: module.log_probs(y, ids).entropy))(z, target),
        }

    for name, function in of(ops).items():
        torch.testing.assert_close(compiled(function)(input), of(reference)[name](input))


def test_autocast_inside_a_compiled_function() -> None:
    def loss(module: Any, input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return module.linear_cross_entropy(input, weight, target)

    arguments = leaf(_ROWS, _DIM), leaf(_CLASSES, _DIM), classes(_ROWS)
    compiled: Any = torch.compile(lambda *given: loss(ops, *given), fullgraph=True, backend="aot_eager")
    ours, torchs = compiled(*arguments), loss(reference, *arguments)
    assert ours.dtype == torchs.dtype == torch.float32
    torch.testing.assert_close(ours, torchs, rtol=0.02, atol=0.02)
    found, expected = (torch.autograd.grad(value, arguments[:2]) for value in (ours, torchs))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.002)


class NextToken(torch.nn.Module):
    """The first layer, the output layer and the loss of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.first = EmbeddingLinear(_CLASSES, 5, _TOKENS, _DIM)
        self.loss = LinearCrossEntropyLoss(_DIM, _CLASSES, softcap=5.0)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.first(ids), target)


@pytest.mark.parametrize("strict", [False, True])
def test_export_is_ordinary_pytorch_that_can_be_trained(strict: bool) -> None:
    model, rows = NextToken().to(device), torch.export.Dim("rows", min=2)
    ids, target = integers(_CLASSES, (_ROWS, _TOKENS)), integers(_CLASSES, (_ROWS,), seed=1)
    shapes = ({0: rows}, {0: rows})
    exported = torch.export.export(model, (ids, target), dynamic_shapes=shapes, strict=strict)
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not any("charlm" in name for name in called)
    program = exported.module()
    for count in (_ROWS, 11):
        loss, expected = program(ids[:count], target[:count]), model(ids[:count], target[:count])
        torch.testing.assert_close(loss, expected)
        ours = torch.autograd.grad(loss, list(program.parameters()))
        torch.testing.assert_close(ours, torch.autograd.grad(expected, list(model.parameters())))
