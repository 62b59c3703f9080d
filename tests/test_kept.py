"""What an op keeps from forward to backward: how much memory, what may be written to, and what backward computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import integers, joined, normal
from torch import Tensor

from charlm import ops
from charlm.ops import reference

pytestmark = pytest.mark.cpu  # where forward computes gradients; a GPU keeps the logits themselves

ROWS, FEATURES, CLASSES, CONTEXT_LENGTH, DIM, HIDDEN = 128, 16, 500, 3, 8, 40
PAGE = (Path(__file__).parents[1] / "docs" / "ops.md").read_text()


def kept(call: Callable[[], Tensor], *arguments: Tensor) -> int:
    """The bytes that a graph holds, the arguments aside, which the caller has anyway."""
    theirs = {argument.untyped_storage().data_ptr() for argument in arguments}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in theirs:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def layer(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, bias = (
        normal(*shape, dtype=dtype, seed=seed).requires_grad_()
        for seed, shape in enumerate(((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,)))
    )
    return hidden, weight, bias, integers(CLASSES, (ROWS,))


def network(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    shapes = ((CLASSES, DIM), (HIDDEN, CONTEXT_LENGTH * DIM), (HIDDEN,), (CLASSES, HIDDEN), (CLASSES,))
    parameters = (normal(*shape, dtype=dtype, seed=seed).requires_grad_() for seed, shape in enumerate(shapes))
    return integers(CLASSES, (ROWS, CONTEXT_LENGTH)), integers(CLASSES, (ROWS,)), *parameters


def of_logits(namespace: object, dtype: torch.dtype, options: dict) -> float:
    """Kept of a loss whose logits nobody else holds, in units of them."""
    hidden, weight, bias, target = layer(dtype)
    theirs = (hidden, weight, bias, target, *(value for value in options.values() if isinstance(value, Tensor)))
    size = kept(lambda: namespace.cross_entropy(F.linear(hidden, weight, bias), target, **options), *theirs)
    return size / (ROWS * CLASSES * hidden.element_size())


OPTIONS = {
    "no option": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "softcap": {"softcap": 30.0},
    "z_loss": {"z_loss": 1e-4},
    "softcap and z_loss": {"softcap": 30.0, "z_loss": 1e-4},
    "token_weights": {"token_weights": torch.linspace(-1.0, 2.0, ROWS, dtype=torch.float64)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_as_the_page_says(name: str) -> None:
    row = re.search(rf"^\| `?{name}`? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE.replace("`", ""), re.MULTILINE)
    assert row is not None
    measured = (
        of_logits(ops, torch.float32, OPTIONS[name]),
        of_logits(ops, torch.bfloat16, OPTIONS[name]),
        of_logits(F if OPTIONS[name].keys() <= {"label_smoothing"} else reference, torch.float32, OPTIONS[name]),
    )
    assert [round(number, 1) for number in measured] == [float(number) for number in row.groups()]


def test_a_loss_and_its_gradients_without_logits() -> None:
    hidden, weight, bias, target = layer()
    ours = kept(
        lambda: ops.linear_cross_entropy(hidden, weight, target, linear_bias=bias), hidden, weight, bias, target
    )
    assert ours == sum(tensor.nbytes for tensor in (hidden, weight, bias))
    token_weights = OPTIONS["token_weights"]["token_weights"]
    weighted = kept(
        lambda: ops.linear_cross_entropy(hidden, weight, target, linear_bias=bias, token_weights=token_weights),
        *(hidden, weight, bias, target, token_weights),
    )
    assert weighted == ours
    arguments = network()
    ours = kept(lambda: ops.mlp_cross_entropy(*arguments), *arguments)
    _, _, embedding, weight1, bias1, weight2, bias2 = arguments
    assert ours == sum(parameter.nbytes for parameter in (embedding, weight1, bias1, weight2, bias2))


@pytest.mark.parametrize("vocab_size", [27, 5000])
def test_a_layer_keeps_no_more_than_torch(vocab_size: int) -> None:
    """The table, or what is picked from it where that is less, and the output."""
    ids = integers(vocab_size, (ROWS, CONTEXT_LENGTH))
    _, _, _, weight, bias, *_ = network()
    embedding = normal(vocab_size, DIM, dtype=torch.float32).requires_grad_()
    arguments = (ids, embedding, weight, bias)
    rows = min(vocab_size, ids.numel()) * DIM * 4
    ours = kept(lambda: ops.embedding_linear(*arguments), *arguments)
    assert ours == rows + ROWS * HIDDEN * 4
    assert ours <= kept(lambda: reference.embedding_linear(*arguments), *arguments)


def test_log_probs_keep_three_numbers_a_row() -> None:
    hidden, weight, bias, ids = layer(torch.float64)
    logits = F.linear(hidden, weight, bias)
    assert kept(lambda: ops.log_probs(logits, ids).log_probs, logits, ids) == 3 * ROWS * 8


def test_losses_whose_graph_is_still_there_share_no_gradient() -> None:
    """Four heads before one backward: the first backward must not write into what the others return."""
    hidden, weight, bias, target = layer(torch.float64)
    heads = [weight.detach().roll(n, 0).requires_grad_() for n in range(4)]
    total = sum(ops.cross_entropy(F.linear(hidden, head, bias), target) for head in heads)
    expected = sum(F.cross_entropy(F.linear(hidden, head, bias), target) for head in heads)
    found = torch.autograd.grad(total, [hidden, bias, *heads])
    torch.testing.assert_close(found, torch.autograd.grad(expected, [hidden, bias, *heads]))


def test_logits_are_masked_after_the_loss() -> None:
    hidden, weight, bias, target = layer(torch.float64)
    for options in OPTIONS.values():
        untouched = reference.cross_entropy(F.linear(hidden, weight, bias), target, **options)
        expected = torch.autograd.grad(untouched, (hidden, weight))
        logits = F.linear(hidden, weight, bias)
        loss = ops.cross_entropy(logits, target, **options)
        with torch.no_grad():
            logits[:, 4] = -torch.inf
        torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), expected)


def test_a_second_derivative_of_logits_that_were_written_to() -> None:
    """Where they are not kept it is right all the same; where they are, it is refused, and a view does not hide it."""
    hidden, weight, bias, target = layer(torch.float64)
    for options in OPTIONS.values():
        logits = F.linear(hidden, weight, bias)
        loss = ops.cross_entropy(logits.view(ROWS, CLASSES), target, **options)
        with torch.no_grad():
            logits[0].zero_()
        if not options.keys() <= {"label_smoothing"}:
            with pytest.raises(RuntimeError, match="input has been modified by an inplace operation"):
                torch.autograd.grad(loss, weight, create_graph=True)
            continue
        (first,) = torch.autograd.grad(loss, weight, create_graph=True)
        untouched = reference.cross_entropy(F.linear(hidden, weight, bias), target, **options)
        (expected,) = torch.autograd.grad(untouched, weight, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), weight)
        torch.testing.assert_close(second, torch.autograd.grad(expected.square().sum(), weight))


def test_second_derivatives_of_masked_logits_and_of_weights_of_zero() -> None:
    logits = normal(ROWS, CLASSES)
    logits[:, 4] = -torch.inf
    logits[:, 5] = -1e4
    weight = torch.ones(CLASSES, dtype=logits.dtype)
    weight[:20] = 0.0
    target = integers(20, (ROWS,)).where(integers(2, (ROWS,), seed=1) > 0, 100)

    def second(cross_entropy: Callable[..., Tensor], options: dict) -> Tensor:
        leaf = logits.clone().requires_grad_()
        (first,) = torch.autograd.grad(cross_entropy(leaf, target, **options), leaf, create_graph=True)
        return torch.autograd.grad((first * normal(*first.shape, seed=2)).sum(), leaf)[0]

    for options in ({}, {"weight": weight}, {"reduction": "sum", "ignore_index": 100}):
        found = second(ops.cross_entropy, options)
        assert torch.count_nonzero(found[:, 4:6]) == 0
        torch.testing.assert_close(found, second(F.cross_entropy, options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_tables_and_biases_are_written_to_after_forward(dtype: torch.dtype) -> None:
    """Torch needs neither in backward. max_norm, the next look-up, and an early optimizer step do it."""
    ids, target, *parameters = network(dtype)
    hidden, weight, *_ = layer(dtype)

    def calls(namespace: object, embedding: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> list[Tensor]:
        return [
            namespace.embedding_linear(ids, embedding, w1, b1),
            namespace.embedding_linear(ids, embedding, w1, b1, activation="gelu"),
            namespace.mlp_cross_entropy(ids, target, embedding, w1, b1, w2, b2),
            namespace.mlp_cross_entropy(ids, target, embedding, w1, b1, w2, b2, reduction="none"),
            namespace.linear_cross_entropy(hidden, weight, target, linear_bias=b2),
            namespace.linear_cross_entropy(hidden, weight, target, linear_bias=b2, reduction="none"),
            joined(namespace.linear_log_probs(hidden, weight, target, linear_bias=b2)),
        ]

    def gradients(results: list[Tensor]) -> list[tuple[Tensor | None, ...]]:
        leaves = [*parameters, weight]
        return [torch.autograd.grad(r.sum(), leaves, allow_unused=True, retain_graph=True) for r in results]

    results = calls(ops, *parameters)
    expected = gradients(results)
    with torch.no_grad():
        for parameter in (parameters[0], parameters[2], parameters[4]):
            parameter.mul_(3.0).add_(1.0)
    torch.testing.assert_close(gradients(results), expected)
    _, w1, _, w2, _ = parameters
    for result, leaf in zip(results, (w1, w1, w2, w2, weight, weight, weight), strict=True):
        with pytest.raises(RuntimeError, match=r"(embedding|bias) has been modified by an inplace operation"):
            torch.autograd.grad(result.sum(), leaf, create_graph=True)


def test_a_second_look_up_of_an_embedding_with_a_largest_norm() -> None:
    table = torch.nn.Embedding(CLASSES, DIM, max_norm=1.0, dtype=torch.float64)
    ids, _, _, weight, bias, *_ = network(torch.float64)
    with torch.no_grad():
        table(ids)  # all rows are within the norm, or the reference would see others
    expected = torch.autograd.grad(reference.embedding_linear(ids, table.weight, weight, bias).sum(), table.weight)
    output = ops.embedding_linear(ids, table.weight, weight, bias)
    table(ids)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), table.weight), expected)


def test_the_input_of_a_frozen_layer_is_written_to() -> None:
    hidden, weight, bias, target = layer(torch.float64)
    results = []
    for function in (ops.linear_cross_entropy, reference.linear_cross_entropy):
        input = hidden * 2
        loss = function(input, weight.detach(), target, linear_bias=bias.detach())
        with torch.no_grad():
            input.zero_()
        results.append(torch.autograd.grad(loss, hidden))
    torch.testing.assert_close(*results)


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    hidden, weight, bias, target = layer(torch.float64)
    ids, _, *parameters = network(torch.float64)
    rows = ops.linear_cross_entropy(hidden, weight, target, linear_bias=bias, reduction="none")
    output = ops.embedding_linear(ids, *parameters[:3])
    asked = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if "backward" in str(func) and str(func).startswith("charlm"):
                asked.append(tuple(tensor.numel() > 0 for tensor in result))
            return result

    def computed(result: Tensor, leaf: Tensor) -> tuple[bool, ...]:
        with Record():
            torch.autograd.grad(result.sum(), leaf, retain_graph=True)
        return asked.pop()

    assert computed(rows, hidden) == (True, False, False, False)
    assert computed(rows, weight) == (False, True, False, False)
    assert computed(rows, bias) == (False, False, True, False)
    assert computed(output, parameters[0]) == (True, False, False)
    assert computed(output, parameters[1]) == (False, True, False)
    with Record():
        output.sum().backward(inputs=[parameters[2]], retain_graph=True)
    assert asked.pop() == (False, False, True)
    with Record():
        output.sum().backward()
    assert asked.pop() == (True, True, True)


def test_a_frozen_layer_costs_no_product_for_its_weight() -> None:
    hidden, weight, bias, target = layer(torch.float64)
    sizes = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if str(func) == "charlm.linear_cross_entropy_forward.default":
                sizes.extend(gradient.numel() for gradient in result[2:])
            return result

    with Record():
        ops.linear_cross_entropy(hidden, weight.detach(), target, linear_bias=bias)
    assert sizes == [hidden.numel(), 0, bias.numel()]
