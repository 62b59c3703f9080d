"""Backward decides nothing by reading a number from a tensor: whatever traces it sees the same operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import (
    Sample,
    cross_entropy_sample,
    embedding_linear_sample,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
)
from functorch.compile import aot_function, make_boxed_func
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from charlm import ops

F32 = {"dtype": torch.float32}
SAMPLES = {
    "embedding_linear": embedding_linear_sample(9, **F32),
    "embedding_linear, few rows": embedding_linear_sample(5, vocab_size=400, **F32),
    "cross_entropy, mean": cross_entropy_sample(9, 27, targets="ignored", **F32),
    "cross_entropy, none": cross_entropy_sample(9, 27, targets="ignored", reduction="none", **F32),
    "cross_entropy, token weights": cross_entropy_sample(9, 27, token_weighted=True, dtype=torch.bfloat16),
    "cross_entropy, bfloat16": cross_entropy_sample(9, 27, dtype=torch.bfloat16),
    "linear_cross_entropy, mean": linear_cross_entropy_sample(9, targets="ignored", **F32),
    "linear_cross_entropy, token weights": linear_cross_entropy_sample(9, token_weighted=True, **F32),
    "linear_cross_entropy, none": linear_cross_entropy_sample(9, reduction="none", **F32),
    "mlp_cross_entropy, mean": mlp_cross_entropy_sample(9, targets="ignored", **F32),
    "mlp_cross_entropy, none": mlp_cross_entropy_sample(9, reduction="none", **F32),
    "log_probs": log_probs_sample(9, 27, ids_per_row=2, ignored=True, **F32),
    "linear_log_probs": linear_log_probs_sample(9, ids_per_row=2, ignored=True, **F32),
}
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def function_of(sample: Sample) -> Callable[..., Tensor]:
    """Of the arguments that are tensors: a scalar that weighs the results."""
    names = [name for name, value in sample.arguments.items() if isinstance(value, Tensor)]

    def function(*values: Tensor) -> Tensor:
        result = sample.call(getattr(ops, sample.op), dict(zip(names, values, strict=True)))
        return (result * torch.linspace(1.0, 2.0, result.numel(), device=result.device).view(result.shape)).sum()

    return function


def arguments_of(sample: Sample) -> tuple[Tensor, ...]:
    """Those that are tensors, of which those that are differentiated require a gradient."""
    arguments = {**sample.arguments, **sample.leaves()}
    return tuple(value for value in arguments.values() if isinstance(value, Tensor))


def leaves_of(arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(argument for argument in arguments if argument.requires_grad)


def gradients_of(sample: Sample, arguments: tuple[Tensor, ...], scale: float | Tensor = 1.0, **way: bool) -> tuple:
    return torch.autograd.grad(scale * function_of(sample)(*arguments), leaves_of(arguments), **way)


class NoNumberIsRead(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@every_sample
@pytest.mark.parametrize("way", [{}, {"retain_graph": True}, {"create_graph": True}], ids=["plain", "kept", "twice"])
def test_no_number_is_read(sample: Sample, way: dict) -> None:
    with NoNumberIsRead():
        gradients_of(sample, arguments_of(sample), **way)


@every_sample
def test_fake_tensors(sample: Sample) -> None:
    real = arguments_of(sample)
    with FakeTensorMode() as mode:
        arguments = tuple(map(mode.from_tensor, real))
        gradients = gradients_of(sample, arguments)
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves_of(arguments)]


@every_sample
def test_make_fx_sees_one_graph(sample: Sample) -> None:
    arguments = arguments_of(sample)

    def gradients(scale: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return gradients_of(sample, values, scale)

    def trace(scale: float, mode: str = "real") -> torch.fx.GraphModule:
        return make_fx(gradients, tracing_mode=mode)(torch.tensor(scale), *arguments)

    graphs = [trace(1.0), trace(2.0), trace(torch.nan), trace(1.0, "fake")]
    operations = [[str(node.target) for node in graph.graph.nodes] for graph in graphs]
    assert operations[1:] == operations[:1] * 3
    graphs.append(trace(1.0, "symbolic"))
    for scale in (1.0, -3.0):
        expected = gradients_of(sample, arguments, scale)
        with torch.no_grad():
            torch.testing.assert_close(graphs[0](torch.tensor(scale), *arguments), expected)
            torch.testing.assert_close(graphs[-1](torch.tensor(scale), *arguments), expected)


@every_sample
def test_aot_function(sample: Sample) -> None:
    arguments = arguments_of(sample)
    compiled = aot_function(function_of(sample), lambda graph, _: make_boxed_func(graph.forward))
    for scale in (1.0, -3.0):
        found = torch.autograd.grad(scale * compiled(*arguments), leaves_of(arguments))
        torch.testing.assert_close(found, gradients_of(sample, arguments, scale))


@every_sample
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, of any backward
def test_compiled_autograd(sample: Sample) -> None:
    arguments = arguments_of(sample)
    value = 2.0 * function_of(sample)(*arguments)
    with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager")):
        value.backward()
    found = tuple(leaf.grad for leaf in leaves_of(arguments))
    torch.testing.assert_close(found, gradients_of(sample, arguments, 2.0))


@every_sample
def test_memory_is_tracked(sample: Sample) -> None:
    real = arguments_of(sample)
    with FakeTensorMode() as mode:
        arguments = tuple(map(mode.from_tensor, real))
        tracker = MemTracker()
        with tracker:
            gradients_of(sample, arguments)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    assert max(peak.values()) > 0
