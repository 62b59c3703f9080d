"""torch.export of every op, with and without autocast: the program has the values of the module, wherever it runs.

That it is ordinary PyTorch, can be trained and takes any number of rows is in tests/test_compile.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import device, integers, normal
from torch import Tensor, nn

from charlm import ops
from charlm.nn import CrossEntropyLoss, EmbeddingLinear, LinearCrossEntropyLoss

ROWS, TOKENS, CONTEXT, DIM, HIDDEN = 6, 7, 3, 2, 5


class Model(nn.Module):
    """Parameters for every op, and a function of them."""

    def __init__(self, function: Callable[..., Tensor], *, autocast: bool = False) -> None:
        super().__init__()
        single = {"dtype": torch.float32}
        self.table = nn.Parameter(normal(TOKENS, DIM, **single, seed=1))
        self.weight = nn.Parameter(normal(HIDDEN, CONTEXT * DIM, **single, seed=2))
        self.bias = nn.Parameter(normal(HIDDEN, **single, seed=3))
        self.output = nn.Parameter(normal(TOKENS, HIDDEN, **single, seed=4))
        self.function = function
        self.autocast = autocast

    def forward(self, *inputs: Tensor) -> Tensor:
        if not self.autocast:
            return self.function(self, *inputs)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return self.function(self, *inputs)


def hidden() -> Tensor:
    return normal(ROWS, HIDDEN, dtype=torch.float32)


def ids() -> Tensor:
    return integers(TOKENS, (ROWS, CONTEXT))


def classes() -> Tensor:
    return integers(TOKENS, (ROWS,), seed=5)


def token_weights() -> Tensor:
    return 1.0 + normal(ROWS, dtype=torch.float32, seed=7)


def probabilities() -> Tensor:
    return normal(ROWS, TOKENS, dtype=torch.float32, seed=6).softmax(1)


def flat(results: ops.LogProbs) -> Tensor:
    """Those of the results that can be differentiated."""
    return torch.cat([value.flatten() for value in results[:3]])


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "embedding_linear": (lambda m, x: ops.embedding_linear(x, m.table, m.weight, m.bias), (ids(),)),
    "embedding_linear, gelu": (
        lambda m, x: ops.embedding_linear(x, m.table, m.weight, activation="gelu").sum(),
        (ids(),),
    ),
    "cross_entropy": (lambda m, h, y: ops.cross_entropy(h @ m.output.T, y), (hidden(), classes())),
    "cross_entropy, all options": (
        lambda m, h, y: ops.cross_entropy(
            h @ m.output.T, y, reduction="none", label_smoothing=0.1, softcap=5.0, z_loss=0.01, ignore_index=2
        ),
        (hidden(), classes()),
    ),
    "cross_entropy, token weights": (
        lambda m, h, y, w: ops.cross_entropy(h @ m.output.T, y, token_weights=w),
        (hidden(), classes(), token_weights()),
    ),
    "cross_entropy, probabilities": (
        lambda m, h, p: ops.cross_entropy(h @ m.output.T, p),
        (hidden(), probabilities()),
    ),
    "linear_cross_entropy": (
        lambda m, h, y: ops.linear_cross_entropy(h, m.output, y, softcap=5.0),
        (hidden(), classes()),
    ),
    "linear_cross_entropy, token weights": (
        lambda m, h, y, w: ops.linear_cross_entropy(h, m.output, y, token_weights=w, reduction="none"),
        (hidden(), classes(), token_weights()),
    ),
    "linear_cross_entropy, probabilities": (
        lambda m, h, p: ops.linear_cross_entropy(h, m.output, p, reduction="sum"),
        (hidden(), probabilities()),
    ),
    "linear_cross_entropy, positions": (
        lambda m, h, y: ops.linear_cross_entropy(h, m.output.unsqueeze(1), y.unsqueeze(1)),
        (hidden(), classes()),
    ),
    "log_probs": (
        lambda m, h, y: flat(ops.log_probs(h @ m.output.T, y, temperature=0.7, softcap=5.0)),
        (hidden(), classes()),
    ),
    "linear_log_probs": (
        lambda m, h, y: flat(ops.linear_log_probs(h, m.output, y.unsqueeze(-1), ignore_index=2)),
        (hidden(), classes()),
    ),
    "mlp_cross_entropy": (
        lambda m, x, y: ops.mlp_cross_entropy(x, y, m.table, m.weight, m.bias, m.output, None),
        (ids(), classes()),
    ),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
strict_or_not = pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])


def autocast(enabled: bool) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def close(found: Tensor, expected: Tensor, *, rounded: bool) -> None:
    tolerance = 0.03 if rounded else 1e-5
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


@strict_or_not
@every_function
def test_exported_under_autocast_and_run_anywhere(name: str, strict: bool) -> None:
    function, inputs = FUNCTIONS[name]
    model = Model(function)
    with autocast(True):
        expected = model(*inputs)
        program = torch.export.export(model, inputs, strict=strict).module()
        found = program(*inputs)
        assert found.dtype == expected.dtype
        close(found, expected, rounded=True)
    kept = [name for name, _ in program.named_parameters()]  # strict leaves out what is not used
    found_gradients, expected_gradients = (
        torch.autograd.grad(value.float().sum(), [module.get_parameter(name) for name in kept], materialize_grads=True)
        for value, module in ((found, program), (expected, model))
    )
    for gradient, other in zip(found_gradients, expected_gradients, strict=True):
        close(gradient, other, rounded=True)
    close(program(*inputs), expected, rounded=True)


@every_function
def test_exported_without_autocast_and_run_anywhere(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    model = Model(function)
    program = torch.export.export(model, inputs).module()
    close(program(*inputs), model(*inputs), rounded=False)
    with autocast(True):
        close(program(*inputs), model(*inputs), rounded=True)


@strict_or_not
@every_function
def test_autocast_inside_of_the_exported_module(name: str, strict: bool) -> None:
    function, inputs = FUNCTIONS[name]
    model = Model(function, autocast=True)
    program = torch.export.export(model, inputs, strict=strict).module()
    expected = model(*inputs)
    for enabled in (False, True):
        with autocast(enabled):
            found = program(*inputs)
        assert found.dtype == expected.dtype
        close(found, expected, rounded=True)


@strict_or_not
def test_modules_exported_under_autocast(strict: bool) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = EmbeddingLinear(TOKENS, DIM, CONTEXT, HIDDEN)
            self.output = LinearCrossEntropyLoss(HIDDEN, TOKENS, bias=True)
            self.loss = CrossEntropyLoss(label_smoothing=0.1)

        def forward(self, ids: Tensor, target: Tensor) -> Tensor:
            hidden = self.first(ids)
            return self.output(hidden, target) + self.loss(self.output.linear(hidden), target)

    model, inputs = Whole().to(device), (ids(), classes())
    with autocast(True):
        expected = model(*inputs)
        program = torch.export.export(model, inputs, strict=strict).module()
        close(program(*inputs), expected, rounded=True)
    close(program(*inputs), model(*inputs), rounded=True)


@strict_or_not
def test_all_results_of_log_probs(strict: bool) -> None:
    class Layer(nn.Module):
        def forward(self, hidden: Tensor, ids: Tensor) -> ops.LogProbs:
            return ops.log_probs(hidden, ids)

    inputs = hidden(), integers(HIDDEN, (ROWS,))
    expected = ops.log_probs(*inputs)
    found = torch.export.export(Layer(), inputs, strict=strict).module()(*inputs)
    assert type(found) is ops.LogProbs
    torch.testing.assert_close(tuple(found), tuple(expected))


@every_function
def test_models_in_half_precision(name: str) -> None:
    dtype = torch.bfloat16
    function, inputs = FUNCTIONS[name]
    model = Model(function).to(dtype)
    inputs = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs)
    program: Any = torch.export.export(model, inputs).module()
    found, expected = program(*inputs), model(*inputs)
    assert found.dtype == expected.dtype == dtype
    close(found, expected, rounded=True)
