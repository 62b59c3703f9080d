"""The ops among the rest of PyTorch: autocast, loss scaling, checkpoints, hooks, meta tensors, subclasses, modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from cases import (
    ALL_LOG_PROBS_OPTIONS,
    ALL_LOSS_OPTIONS,
    Sample,
    cross_entropy_sample,
    device,
    embedding_linear_sample,
    evaluate,
    integers,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
    normal,
    same_bits,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from charlm import nn as charlm_nn
from charlm import ops
from charlm.ops import reference

SAMPLES = {
    "embedding_linear": embedding_linear_sample(9),
    "cross_entropy": cross_entropy_sample(9, 27, targets="ignored", **ALL_LOSS_OPTIONS),
    "cross_entropy, none": cross_entropy_sample(9, 27, reduction="none"),
    "cross_entropy, probabilities": cross_entropy_sample(9, 27, targets="probabilities"),
    "cross_entropy, token weights": cross_entropy_sample(9, 27, targets="ignored", token_weighted=True),
    "linear_cross_entropy, token weights": linear_cross_entropy_sample(9, token_weighted=True),
    "linear_cross_entropy": linear_cross_entropy_sample(9, targets="ignored", **ALL_LOSS_OPTIONS),
    "linear_cross_entropy, none": linear_cross_entropy_sample(9, reduction="none"),
    "mlp_cross_entropy": mlp_cross_entropy_sample(9, targets="ignored"),
    "mlp_cross_entropy, none": mlp_cross_entropy_sample(9, targets="ignored", reduction="none"),
    "log_probs": log_probs_sample(9, 27, ids_per_row=2, ignored=True, **ALL_LOG_PROBS_OPTIONS),
    "linear_log_probs": linear_log_probs_sample(9, ids_per_row=2, ignored=True, **ALL_LOG_PROBS_OPTIONS),
    "linear_log_probs, few rows": linear_log_probs_sample(5, 7, 300),
}
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
every_half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def call(sample: Sample, leaves: dict[str, Tensor], namespace: Any = ops) -> Tensor:
    return sample.call(getattr(namespace, sample.op), leaves)


def gradients(sample: Sample, namespace: Any = ops, **autocast: Any) -> dict[str, Tensor]:
    """The result and the gradients, backward outside of autocast."""
    leaves = sample.leaves()
    with torch.autocast(device.type, **autocast):
        result = call(sample, leaves, namespace)
    found = torch.autograd.grad(result, list(leaves.values()), torch.full_like(result, 0.5))
    return {"result": result.detach(), **dict(zip(leaves, found, strict=True))}


# Autocast and loss scaling.


@every_half
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
@every_sample
def test_autocast_has_the_dtypes_and_values_of_torch(sample: Sample, given: torch.dtype, dtype: torch.dtype) -> None:
    """The reference is made of F.embedding, F.linear and F.cross_entropy, which autocast knows."""
    mixed = sample.to(given)
    ours = gradients(mixed, dtype=dtype)
    if sample.op.endswith("log_probs"):  # in float32, which on the CPU autocast knows of losses alone
        mixed = mixed.with_arguments(output_dtype=torch.float32)
    torchs = gradients(mixed, reference, dtype=dtype)
    tolerance = 8 * max(torch.finfo(dtype).eps, torch.finfo(given).eps)
    if sample.op in ("cross_entropy", "log_probs"):  # runs in float32, whatever autocast multiplies matrices in
        tolerance = 8 * torch.finfo(given).eps
    for name, expected in torchs.items():
        assert ours[name].dtype == expected.dtype, name
        torch.testing.assert_close(ours[name], expected, rtol=tolerance, atol=tolerance)
    if sample.op != "embedding_linear":
        assert ours["result"].dtype == torch.float32


@every_sample
def test_autocast_leaves_float64_alone(sample: Sample) -> None:
    ours, plain = gradients(sample, dtype=torch.bfloat16), gradients(sample, enabled=False)
    assert all(same_bits(ours[name], plain[name]) for name in plain)


def test_autocast_with_probabilities_in_another_precision() -> None:
    input, target = normal(5, 7, dtype=torch.bfloat16), normal(5, 7, dtype=torch.float32).softmax(1)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        ours, torchs = ops.cross_entropy(input, target), F.cross_entropy(input, target)
    assert ours.dtype == torchs.dtype == torch.float32
    torch.testing.assert_close(ours, torchs)


@every_sample
def test_second_order_under_autocast(sample: Sample) -> None:
    """What autocast multiplied in bfloat16 is differentiated again in float32."""
    half = sample.to(torch.float32)

    def product(namespace: Any) -> list[Tensor]:
        leaves = half.leaves()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            result = call(half, leaves, namespace).float().sum()
            first = torch.autograd.grad(result, list(leaves.values()), create_graph=True)
        total = sum((g.square().sum() for g in first), torch.zeros((), device=device))
        return list(torch.autograd.grad(total, list(leaves.values()), materialize_grads=True))

    for ours, torchs in zip(product(ops), product(reference), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=0.05, atol=0.05 * float(torchs.abs().max()))


def test_grad_scaler_rescues_small_gradients_and_skips_infinite_ones() -> None:
    weight = torch.zeros(27, 8, device=device, requires_grad=True)
    input, target = normal(64, 8, dtype=torch.float32), integers(27, (64,))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**14)

    def step(factor: float) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.float16):
            loss = factor * ops.linear_cross_entropy(input, weight, target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1e-5)  # gradients around 1e-8 round to 0 in float16
    expected = torch.zeros_like(weight, requires_grad=True)
    (1e-5 * F.cross_entropy(input @ expected.T, target)).backward()
    assert expected.grad is not None
    torch.testing.assert_close(weight.detach(), -expected.grad, rtol=1e-2, atol=1e-10)
    before, scale = weight.detach().clone(), scaler.get_scale()
    step(1e30)
    assert torch.equal(weight, before)
    assert scaler.get_scale() < scale


@every_sample
def test_grad_scaler_in_half_precision(sample: Sample) -> None:
    """A loss scale multiplies gradients before they are rounded."""
    half = sample.to(torch.float16)
    leaves = half.leaves()
    tiny, scale = 2.0**-20, 2.0**18
    found = torch.autograd.grad((call(half, leaves).float() * tiny * scale).sum(), list(leaves.values()))
    wide = half.to(torch.float64)
    true_leaves = wide.leaves()
    true = torch.autograd.grad((call(wide, true_leaves, reference) * tiny * scale).sum(), list(true_leaves.values()))
    for ours, expected in zip(found, true, strict=True):
        largest = float(expected.abs().max())
        torch.testing.assert_close(ours.double(), expected, rtol=2e-3, atol=2e-3 * largest)


# Graphs.


@pytest.mark.parametrize("use_reentrant", [True, False])
@every_sample
def test_checkpointing(sample: Sample, use_reentrant: bool) -> None:
    expected = evaluate(sample)
    leaves = sample.leaves()
    names = list(leaves)

    def region(*values: Tensor) -> Tensor:
        return call(sample, {name: value * 1.0 for name, value in zip(names, values, strict=True)})

    result = checkpoint(region, *leaves.values(), use_reentrant=use_reentrant)
    result.backward(normal(*result.shape, seed=99).to(result))
    assert same_bits(result.detach(), expected["result"])
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, expected[f"gradient of {name}"], rtol=1e-13, atol=1e-15)


@every_sample
def test_second_order_through_a_checkpoint(sample: Sample) -> None:
    def penalty(checkpointed: bool) -> tuple[Tensor, ...]:
        leaves = tuple(sample.leaves().values())

        def region(*values: Tensor) -> Tensor:
            return call(sample, dict(zip(sample.differentiable, values, strict=True))).sum()

        result = checkpoint(region, *leaves, use_reentrant=False) if checkpointed else region(*leaves)
        first = torch.autograd.grad(result, leaves, create_graph=True)
        total = sum((g.square().sum() for g in first), torch.zeros_like(result))
        return torch.autograd.grad(total, leaves, materialize_grads=True)

    torch.testing.assert_close(penalty(True), penalty(False), rtol=1e-12, atol=1e-14)


@every_sample
def test_nothing_is_kept_but_what_saved_tensor_hooks_see(sample: Sample) -> None:
    """So that checkpointing and offloading get hold of all of it."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        kept.append(tensor)
        return len(kept) - 1

    leaves = sample.leaves()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda index: kept[index]):
        result = call(sample, leaves)
    assert kept
    nodes = [result.grad_fn]
    for node in nodes:
        nodes += [before for before, _ in node.next_functions if before is not None]
    assert not [
        value for node in nodes for value in getattr(node, "__dict__", {}).values() if isinstance(value, Tensor)
    ]
    expected = evaluate(sample)
    found = torch.autograd.grad(result, list(leaves.values()), normal(*result.shape, seed=99).to(result))
    assert all(same_bits(g, expected[f"gradient of {name}"]) for name, g in zip(leaves, found, strict=True))


@every_sample
def test_a_second_backward_without_the_graph_is_an_error(sample: Sample) -> None:
    leaves = sample.leaves()
    result = call(sample, leaves)
    result.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        result.sum().backward()


@every_sample
def test_a_first_order_backward_after_a_second_order_one(sample: Sample) -> None:
    """The gradient computed in forward stays as it is until the graph is let go."""
    leaves = sample.leaves()
    result = call(sample, leaves)
    upstream = normal(*result.shape, seed=99).to(result)
    torch.autograd.grad(result, list(leaves.values()), 3.0 * upstream, create_graph=True)
    torch.autograd.grad(result, list(leaves.values()), 2.0 * upstream, retain_graph=True)
    found = torch.autograd.grad(result, list(leaves.values()), upstream)
    expected = evaluate(sample)
    assert all(same_bits(g, expected[f"gradient of {name}"]) for name, g in zip(leaves, found, strict=True))


@every_sample
def test_inference_mode_and_its_tensors(sample: Sample) -> None:
    expected = evaluate(sample)["result"]
    with torch.inference_mode():
        made_inside = {name: value.clone() for name, value in sample.leaves().items()}
        assert same_bits(call(sample, made_inside).clone(), expected)
    assert same_bits(call(sample, {name: value.clone() for name, value in made_inside.items()}), expected)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@every_sample
def test_deterministic_mode(sample: Sample, deterministic: None) -> None:
    first, second = evaluate(sample), evaluate(sample)
    assert all(same_bits(first[name], second[name]) for name in first)
    leaves = tuple(sample.leaves().values())
    result = call(sample, dict(zip(sample.differentiable, leaves, strict=True)))
    again = torch.autograd.grad(result, leaves, normal(*result.shape, seed=99).to(result), create_graph=True)
    for name, gradient in zip(sample.differentiable, again, strict=True):
        torch.testing.assert_close(gradient.detach(), first[f"gradient of {name}"], rtol=1e-12, atol=1e-14)


# Tensors of other kinds.


@every_sample
def test_meta_tensors(sample: Sample) -> None:
    expected = evaluate(sample)
    meta = sample.on("meta")
    leaves = meta.leaves()
    result = call(meta, leaves)
    assert result.is_meta
    assert (result.shape, result.dtype) == (expected["result"].shape, expected["result"].dtype)
    for retain in (True, False):
        found = torch.autograd.grad(result, list(leaves.values()), torch.empty_like(result), retain_graph=retain)
        for name, gradient in zip(leaves, found, strict=True):
            assert gradient.is_meta
            assert gradient.shape == expected[f"gradient of {name}"].shape


class Logged(Tensor):
    """A subclass that notes which functions it sees."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(getattr(func, "__name__", ""))
        return super().__torch_function__(func, types, args, kwargs or {})


@every_sample
def test_subclasses_override_the_op_and_come_back(sample: Sample) -> None:
    expected = evaluate(sample)
    for name in (*sample.differentiable, *({"token_weights"} & sample.arguments.keys())):
        Logged.seen.clear()
        leaves = sample.leaves()
        result = call(sample, {**leaves, name: leaves.get(name, sample.arguments[name]).as_subclass(Logged)})
        assert sample.op in Logged.seen
        assert isinstance(result, Logged)
        assert same_bits(result.detach().as_subclass(Tensor), expected["result"])
        found = torch.autograd.grad(
            result, list(leaves.values()), normal(*result.shape, seed=99).to(expected["result"])
        )
        for leaf, gradient in zip(leaves, found, strict=True):
            plain = gradient.as_subclass(Tensor)
            torch.testing.assert_close(plain, expected[f"gradient of {leaf}"], rtol=1e-14, atol=1e-15)


@every_sample
def test_function_modes_see_the_op(sample: Sample) -> None:
    class Mode(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[Any, dict[str, Any]]] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls.append((func, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Mode() as mode:
        result = call(sample, {})
    assert mode.calls[0][0] is getattr(ops, sample.op)
    assert same_bits(result, evaluate(sample)["result"])


def test_parametrize_reaches_the_parameters_of_modules() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2.0 * weight

    first = charlm_nn.EmbeddingLinear(7, 3, 2, 5, dtype=torch.float64, device=device)
    loss = charlm_nn.LinearCrossEntropyLoss(5, 7, dtype=torch.float64, device=device)
    nn.utils.parametrize.register_parametrization(first, "weight", Doubled())
    nn.utils.parametrize.register_parametrization(first, "embedding", Doubled())
    nn.utils.parametrizations.weight_norm(loss.linear)
    ids, target = integers(7, (4, 2)), integers(7, (4,), seed=1)
    parameters = [*first.parameters(), *loss.parameters()]
    found = torch.autograd.grad(loss(first(ids), target), parameters)
    hidden = reference.embedding_linear(ids, first.embedding, first.weight, first.bias)
    expected = torch.autograd.grad(reference.linear_cross_entropy(hidden, loss.linear.weight, target), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
