"""Dtypes that a call mixes, and the dtype of its result: as in torch.nn.functional."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPES,
    REDUCTIONS,
    Sample,
    cross_entropy_sample,
    device,
    evaluate,
    integers,
    linear_cross_entropy_sample,
    mlp_cross_entropy_sample,
    normal,
    same_bits,
)
from torch import Tensor

from charlm import nn as charlm_nn
from charlm import ops
from charlm.ops import reference

# Dtypes, as in torch.nn.functional: promoted, or refused.


def torchs_linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None
) -> Tensor:
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, weight)


def torchs_layer(embedding: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
    return torch.tanh(F.linear(F.embedding(ids, embedding).flatten(-2), weight, bias))


def mixes(count: int) -> Iterator[tuple[torch.dtype, ...]]:
    """Dtypes for so many tensors."""
    return product(DTYPES, repeat=count)


def outcome(function: Callable[..., Tensor], tensors: list[Tensor], dtypes: tuple[torch.dtype, ...]) -> Any:
    """Result and gradients; or None where it raises."""
    leaves = [t.to(d).requires_grad_() if t.is_floating_point() else t for t, d in zip(tensors, dtypes, strict=True)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    try:
        result = function(*leaves)
    except (RuntimeError, ValueError):
        return None
    return result.detach(), *torch.autograd.grad(result.sum(), wanted)


def assert_same_outcome(
    ours: Callable[..., Tensor], torchs: Callable[..., Tensor], tensors: list[Tensor], dtypes: tuple[torch.dtype, ...]
) -> None:
    found, expected = outcome(ours, tensors, dtypes), outcome(torchs, tensors, dtypes)
    assert (found is None) == (expected is None), f"{dtypes}: ours {found}, PyTorch {expected}"
    if found is None:
        return
    lower = [torch.get_autocast_dtype(device.type)] if torch.is_autocast_enabled(device.type) else []
    tolerance = 16 * max(torch.finfo(dtype).eps for dtype in (*dtypes, *lower))
    for actual, other in zip(found, expected, strict=True):
        assert actual.dtype == other.dtype, dtypes
        torch.testing.assert_close(actual.double(), other.double(), rtol=tolerance, atol=tolerance)


autocast_or_not = pytest.mark.parametrize("lower", [None, torch.bfloat16], ids=["plain", "autocast"])


@autocast_or_not
def test_logits_and_probabilities_of_every_two_dtypes(lower: torch.dtype | None) -> None:
    """Mixup without autocast: bfloat16 logits, float32 probabilities."""
    tensors = [normal(6, 5), normal(6, 5, seed=1).softmax(1)]
    for dtypes, reduction in product(mixes(2), REDUCTIONS):
        with torch.autocast(device.type, dtype=lower, enabled=lower is not None):
            assert_same_outcome(
                lambda *given, reduction=reduction: ops.cross_entropy(*given, reduction=reduction),
                lambda *given, reduction=reduction: F.cross_entropy(*given, reduction=reduction),
                tensors,
                dtypes,
            )


@autocast_or_not
def test_class_weights_of_every_dtype(lower: torch.dtype | None) -> None:
    weight = normal(5, seed=2).abs()
    for dtypes in mixes(2):
        own = weight.to(dtypes[1])
        for target in (integers(5, (6,)), normal(6, 5, seed=1).softmax(1).to(dtypes[0])):
            with torch.autocast(device.type, dtype=lower, enabled=lower is not None):
                assert_same_outcome(
                    lambda input, own=own, target=target: ops.cross_entropy(input, target, own),
                    lambda input, own=own, target=target: F.cross_entropy(input, target, own),
                    [normal(6, 5)],
                    dtypes[:1],
                )


def test_integer_class_weights_go_with_probabilities_alone() -> None:
    input, probabilities, weight = normal(6, 5), normal(6, 5, seed=1).softmax(1), torch.tensor([1, 2, 0, 3, 1])
    weight = weight.to(device)
    torch.testing.assert_close(
        ops.cross_entropy(input, probabilities, weight), F.cross_entropy(input, probabilities, weight)
    )
    for function in (ops.cross_entropy, F.cross_entropy):
        with pytest.raises(RuntimeError):
            function(input, integers(5, (6,)), weight)


@autocast_or_not
@pytest.mark.parametrize("probabilities", [False, True])
def test_a_layer_and_a_target_of_every_dtype(probabilities: bool, lower: torch.dtype | None) -> None:
    target = normal(6, 5, seed=1).softmax(1) if probabilities else integers(5, (6,))
    tensors = [normal(6, 4, seed=2), normal(5, 4, seed=3), target, normal(5, seed=4)]
    for dtypes in mixes(4 if probabilities else 3):
        given = dtypes if probabilities else (*dtypes[:2], torch.float64, dtypes[2])
        with torch.autocast(device.type, dtype=lower, enabled=lower is not None):
            assert_same_outcome(
                lambda input, weight, target, bias: ops.linear_cross_entropy(input, weight, target, linear_bias=bias),
                lambda input, weight, target, bias: torchs_linear_cross_entropy(input, weight, target, bias, None),
                tensors,
                given,
            )


@autocast_or_not
def test_first_layers_of_every_dtype(lower: torch.dtype | None) -> None:
    ids = integers(7, (6, 2))
    for dtypes in mixes(3):
        with torch.autocast(device.type, dtype=lower, enabled=lower is not None):
            assert_same_outcome(
                lambda table, weight, bias: ops.embedding_linear(ids, table, weight, bias),
                lambda table, weight, bias: torchs_layer(table, weight, bias, ids),
                [normal(7, 3), normal(4, 6, seed=1), normal(4, seed=2)],
                dtypes,
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_keep_their_precision_under_autocast(dtype: torch.dtype) -> None:
    """0.9 in bfloat16 is 0.8984: in that the loss would be two thousandths too small."""
    input, weight = torch.zeros(4, 3, device=device), torch.zeros(5, 3, device=device)
    target = torch.full((4, 5), 0.9, device=device)
    with torch.autocast(device.type, dtype=dtype):
        loss = ops.linear_cross_entropy(input, weight, target)
    assert loss.item() == pytest.approx(4.5 * 1.6094379124341003, rel=1e-6)


# The dtype of the result.


def losses_in_float64(sample: Sample) -> Tensor:
    wide = sample.to(torch.float64)
    return wide.call(getattr(reference, sample.op), {})


LOSS_SAMPLES = {
    "cross_entropy": cross_entropy_sample(9, 27, weighted=True, targets="ignored", softcap=5.0, z_loss=0.01),
    "cross_entropy, token weights": cross_entropy_sample(9, 27, token_weighted=True, targets="ignored"),
    "cross_entropy, probabilities": cross_entropy_sample(9, 27, targets="probabilities", label_smoothing=0.1),
    "linear_cross_entropy": linear_cross_entropy_sample(9, weighted=True, targets="ignored", label_smoothing=0.1),
    "linear_cross_entropy, probabilities": linear_cross_entropy_sample(9, targets="probabilities"),
    "mlp_cross_entropy": mlp_cross_entropy_sample(9, targets="ignored", softcap=3.0),
}
every_loss_sample = pytest.mark.parametrize("sample", LOSS_SAMPLES.values(), ids=LOSS_SAMPLES)
every_half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def tolerance_of_products(sample: Sample, dtype: torch.dtype) -> float:
    """How wrong a loss may be because a GPU rounds logits, which are products, to the dtype of the layer."""
    return 4 * torch.finfo(dtype).eps if cases.on_cuda and sample.op == "linear_cross_entropy" else 0.0


@every_half
@every_loss_sample
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_float32_losses_of_half_precision(reduction: str, sample: Sample, dtype: torch.dtype) -> None:
    """A loss of 17.061 a row is not 17.0."""
    half = sample.to(dtype).with_arguments(reduction=reduction)
    rounded, kept = evaluate(half), evaluate(half.with_arguments(output_dtype=torch.float32))
    assert rounded["result"].dtype == dtype
    assert kept["result"].dtype == torch.float32
    truth = losses_in_float64(half)
    tolerance = tolerance_of_products(sample, dtype) or (2e-6 if not sample.op.startswith("mlp") else 2e-5)
    torch.testing.assert_close(kept["result"].double(), truth, rtol=tolerance, atol=tolerance)
    for name, gradient in rounded.items():
        if name != "result":
            assert kept[name].dtype == dtype
            torch.testing.assert_close(
                kept[name], gradient, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps
            )
    twin = evaluate(half.with_arguments(output_dtype=torch.float32), reference)
    torch.testing.assert_close(kept["result"], twin["result"], rtol=tolerance, atol=tolerance)


@every_loss_sample
@pytest.mark.parametrize("output_dtype", DTYPES)
def test_the_result_has_the_dtype_that_was_asked_for(output_dtype: torch.dtype, sample: Sample) -> None:
    for dtype in DTYPES:
        given = sample.to(dtype).with_arguments(output_dtype=output_dtype)
        plain = sample.to(dtype).with_arguments(output_dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        for namespace in (ops, reference):
            function = getattr(namespace, sample.op)
            assert given.call(function, {}).dtype == output_dtype
            assert same_bits(given.call(function, {}), plain.call(function, {}).to(output_dtype))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            assert given.call(getattr(ops, sample.op), {}).dtype == output_dtype
        leaves = given.leaves()
        given.call(getattr(ops, sample.op), leaves).sum().backward()
        assert all(leaf.grad is not None and leaf.grad.dtype == dtype for leaf in leaves.values())


@every_loss_sample
def test_float32_losses_through_transforms_and_the_compiler(sample: Sample) -> None:
    half = sample.to(torch.bfloat16).with_arguments(output_dtype=torch.float32, reduction="none")
    expected = evaluate(half)
    leaves = half.leaves()
    names = list(leaves)
    function = getattr(ops, sample.op)

    def losses(*values: Tensor) -> Tensor:
        return half.call(function, dict(zip(names, values, strict=True)))

    torch.compiler.reset()
    compiled: Any = torch.compile(losses, fullgraph=True, backend="aot_eager")
    value = compiled(*leaves.values())
    assert same_bits(value.detach(), expected["result"])
    found = torch.autograd.grad(value, list(leaves.values()), normal(*value.shape, seed=99).to(value))
    assert all(
        same_bits(gradient, expected[f"gradient of {name}"]) for name, gradient in zip(names, found, strict=True)
    )

    stacks = [torch.stack([leaf.detach(), leaf.detach()]) for leaf in leaves.values()]
    mapped = torch.vmap(losses)(*stacks)
    assert mapped.dtype == torch.float32
    tolerance = tolerance_of_products(sample, torch.bfloat16) or 1e-5
    torch.testing.assert_close(mapped, torch.stack([expected["result"]] * 2), rtol=tolerance, atol=tolerance)
    first = torch.autograd.grad(losses(*leaves.values()).sum(), list(leaves.values()), create_graph=True)
    assert all(gradient.dtype == torch.bfloat16 for gradient in first)
    torch.autograd.grad(sum(g.float().square().sum() for g in first), list(leaves.values()), materialize_grads=True)


def test_modules_pass_the_output_dtype_on() -> None:
    logits, target = normal(6, 5, dtype=torch.bfloat16), integers(5, (6,))
    loss = charlm_nn.CrossEntropyLoss(output_dtype=torch.float32)(logits, target)
    assert same_bits(loss, ops.cross_entropy(logits, target, output_dtype=torch.float32))
    layer = charlm_nn.LinearCrossEntropyLoss(5, 7, output_dtype=torch.float32, dtype=torch.bfloat16, device=device)
    expected = ops.linear_cross_entropy(logits, layer.linear.weight, target, output_dtype=torch.float32)
    assert same_bits(layer(logits, target).detach(), expected.detach())
    assert expected.dtype == torch.float32
