"""A row that does not count has gradient exactly 0, whatever comes from upstream.

One step that divides by the number of labels, where there is none, must not turn a model into NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, REDUCTIONS, device, integers, mlp_cross_entropy_sample, normal
from torch import Tensor

from charlm import nn, ops
from charlm.ops import reference

ROWS, FEATURES, CLASSES = 6, 4, 5
UPSTREAMS = (math.nan, math.inf, -math.inf)
# Of the rows that count, which are the odd ones, and what nobody may read.
TOKEN_WEIGHTS = torch.tensor([math.nan, -0.5, math.inf, 2.0, -math.inf, 0.25])
OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "weighted": {"weight": torch.linspace(0.5, 2.0, CLASSES)},
    "token weights": {"token_weights": TOKEN_WEIGHTS},
    "softcap": {"softcap": 2.0},
    "z-loss": {"z_loss": 0.1},
    "all": {"token_weights": TOKEN_WEIGHTS, "label_smoothing": 0.1, "softcap": 2.0, "z_loss": 0.1},
}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
ops_and_reference = pytest.mark.parametrize("namespace", [ops, reference], ids=["ops", "reference"])


def targets(some_count: bool) -> Tensor:
    target = integers(CLASSES, (ROWS,), seed=3)
    target[::2] = -100
    return target if some_count else torch.full_like(target, -100)


def leaves(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits; input, weight and bias of an output layer."""
    shapes = ((ROWS, CLASSES), (ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    logits, input, weight, bias = (
        normal(*shape, dtype=dtype, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)
    )
    return logits, input, weight, bias


def assert_zero(*gradients: Tensor) -> None:
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))


@every_option
@every_reduction
@every_dtype
@ops_and_reference
def test_any_upstream_gradient(namespace: object, dtype: torch.dtype, reduction: str, options: dict) -> None:
    options = {
        name: value.to(device, dtype) if name.endswith(("weight", "weights")) else value
        for name, value in options.items()
    }
    for some_count in (True, False):
        target = targets(some_count)
        ignored = target == -100
        logits, *layer = leaves(dtype)
        input, weight, bias = layer
        loss = namespace.cross_entropy(logits, target, reduction=reduction, **options)
        fused = namespace.linear_cross_entropy(input, weight, target, linear_bias=bias, reduction=reduction, **options)
        # The last frees the graph, and so may write into what is saved.
        ways = ({"retain_graph": True}, {"create_graph": True}, {})
        for value in UPSTREAMS:
            for way in ways[: 3 if value is UPSTREAMS[-1] else 2]:
                (gradient,) = torch.autograd.grad(loss, logits, torch.full_like(loss, value), **way)
                found = torch.autograd.grad(fused, layer, torch.full_like(fused, value), **way)
                assert_zero(gradient[ignored], found[0][ignored])
                if some_count:
                    assert not gradient[~ignored].isfinite().any()
                    assert not any(g.isfinite().all() for g in found)
                else:
                    assert_zero(*found)


@pytest.mark.parametrize("ignore_index", [-100, 2])
@every_dtype
@ops_and_reference
def test_rows_of_several_dimensions_and_any_class_ignored(
    namespace: object, dtype: torch.dtype, ignore_index: int
) -> None:
    logits = normal(3, CLASSES, 2, 4, dtype=dtype).requires_grad_()
    target = integers(CLASSES, (3, 2, 4), seed=3)
    target[0, 1, 3] = target[2, 0, 1] = ignore_index
    ignored = target == ignore_index
    for way in ({"retain_graph": True}, {}):
        loss = namespace.cross_entropy(logits, target, ignore_index=ignore_index)
        (gradient,) = torch.autograd.grad(loss, logits, torch.full_like(loss, torch.inf), **way)
        rows = gradient.movedim(1, -1)
        assert_zero(rows[ignored])
        assert not rows[~ignored].isfinite().any()


@every_reduction
@every_dtype
@ops_and_reference
def test_any_upstream_gradient_of_a_whole_model(namespace: object, dtype: torch.dtype, reduction: str) -> None:
    for some_count, softcap in ((True, None), (False, None), (True, 2.0)):
        target = targets(some_count)
        sample = mlp_cross_entropy_sample(ROWS, 2, CLASSES, dtype=dtype, reduction=reduction, softcap=softcap)
        sample = sample.with_arguments(target=target)
        leaves = sample.leaves()
        loss = sample.call(namespace.mlp_cross_entropy, leaves)
        if reduction == "none":
            assert_zero(loss[target == -100].detach())
        else:
            assert loss.isnan() == (reduction == "mean" and not some_count)
        for value in UPSTREAMS:
            for way in ({"retain_graph": True}, {"create_graph": True}):
                found = torch.autograd.grad(loss, list(leaves.values()), torch.full_like(loss, value), **way)
                if some_count:
                    assert not any(g.isfinite().all() for g in found)
                else:
                    assert_zero(*found)


def test_a_loss_divided_by_the_number_of_labels_where_there_is_none() -> None:
    logits = normal(3, CLASSES, dtype=torch.float32).requires_grad_()
    target = torch.full((3,), -100, device=device)
    (ops.cross_entropy(logits, target, reduction="sum") / (target != -100).sum()).backward()
    assert_zero(logits.grad)


def test_a_whole_model_survives_a_batch_without_labels() -> None:
    layer = nn.LinearCrossEntropyLoss(FEATURES, CLASSES, reduction="sum", device=device)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    target = torch.full((ROWS,), -100, device=device)
    (layer(normal(ROWS, FEATURES, dtype=torch.float32), target) / (target != -100).sum()).backward()
    optimizer.step()
    assert all(map(torch.equal, before, layer.parameters()))


def test_means_of_sequences_where_one_has_no_labels() -> None:
    """nanmean over sequences: its backward sends 0 / 0 into the one that it leaves out."""
    logits = normal(2, 3, CLASSES).requires_grad_()
    target = integers(CLASSES, (2, 3))
    target[1] = -100

    def gradient(cross_entropy: Callable[..., Tensor]) -> Tensor:
        rows = cross_entropy(logits.transpose(1, 2), target, reduction="none")
        means = rows.sum(1) / (target != -100).sum(1)
        return torch.autograd.grad(means.nanmean(), logits)[0]

    assert_zero(gradient(ops.cross_entropy)[1])
    torch.testing.assert_close(gradient(ops.cross_entropy), gradient(F.cross_entropy))


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_focal_loss(gamma: float) -> None:
    """(1 - p)^gamma with p = 1 in rows of loss 0: its derivative there is infinite for gamma < 1."""
    logits = normal(ROWS, CLASSES).requires_grad_()
    target = targets(True)

    def gradient(cross_entropy: Callable[..., Tensor]) -> Tensor:
        rows = cross_entropy(logits, target, reduction="none")
        return torch.autograd.grad(((1 - (-rows).exp()) ** gamma * rows).sum(), logits)[0]

    assert_zero(gradient(ops.cross_entropy)[target == -100])
    torch.testing.assert_close(gradient(ops.cross_entropy), gradient(F.cross_entropy))


def test_gradients_of_each_sample_of_a_whole_model_where_one_is_ignored() -> None:
    sample = mlp_cross_entropy_sample(ROWS, 2, CLASSES)
    ids, _, *parameters = (value for value in sample.arguments.values() if isinstance(value, Tensor))
    target = targets(True)

    def gradients(function: Callable[..., Tensor], reduction: str) -> tuple[Tensor, ...]:
        def loss(ids: Tensor, target: Tensor, *parameters: Tensor) -> Tensor:
            return function(ids, target, *parameters, reduction=reduction)

        each = torch.func.grad(loss, argnums=(2, 3, 4, 5, 6))
        return torch.func.vmap(each, in_dims=(0, 0, *(None,) * 5))(ids, target, *parameters)

    for reduction in ("sum", "mean"):
        found = gradients(ops.mlp_cross_entropy, reduction)
        assert_zero(*(gradient[target == -100] for gradient in found))
        expected = gradients(reference.mlp_cross_entropy, "sum")
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
def test_gradients_of_each_sample_where_one_is_ignored(op: str) -> None:
    logits, input, weight, _ = (leaf.detach() for leaf in leaves(torch.float64))
    target = targets(True)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        arguments = (x, y) if op == "cross_entropy" else (x, weight, y)
        return getattr(ops, op)(*arguments)

    rows = logits if op == "cross_entropy" else input
    found = torch.func.vmap(torch.func.grad(loss))(rows, target)
    assert_zero(found[target == -100])
    expected = torch.func.vmap(
        torch.func.grad(lambda x, y: F.cross_entropy(x if op == "cross_entropy" else weight @ x, y))
    )
    torch.testing.assert_close(found[target != -100], expected(rows, target)[target != -100])


@every_reduction
def test_a_second_derivative_with_weights_of_rows(reduction: str) -> None:
    target, token_weights = targets(True), TOKEN_WEIGHTS.to(device, torch.float64)
    logits, *_ = leaves(torch.float64)
    found = []
    for namespace in (ops, reference):
        loss = namespace.cross_entropy(logits, target, token_weights=token_weights, reduction=reduction)
        (first,) = torch.autograd.grad(loss, logits, torch.full_like(loss, 3.0), create_graph=True)
        found.append(torch.autograd.grad(first.pow(3).sum(), logits)[0])
    assert_zero(found[0][target == -100])
    torch.testing.assert_close(*found)


@every_reduction
def test_a_second_derivative(reduction: str) -> None:
    """Of an ignored row it is 0 too, and the others' are torch's."""
    target = targets(True)
    logits, *_ = leaves(torch.float64)

    def second(cross_entropy: Callable[..., Tensor]) -> Tensor:
        loss = cross_entropy(logits, target, reduction=reduction)
        (first,) = torch.autograd.grad(loss, logits, torch.full_like(loss, 3.0), create_graph=True)
        return torch.autograd.grad(first.pow(3).sum(), logits)[0]

    assert_zero(second(ops.cross_entropy)[target == -100])
    torch.testing.assert_close(second(ops.cross_entropy), second(F.cross_entropy))


@pytest.mark.cpu
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 2.0}], ids=["plain", "all"])
def test_compiled(options: dict) -> None:
    target = targets(True)
    logits, input, weight, bias = leaves(torch.float32)

    @torch.compile(fullgraph=True)
    def losses(target: Tensor) -> Tensor:
        first = ops.cross_entropy(logits, target, reduction="sum", **options)
        second = ops.linear_cross_entropy(input, weight, target, linear_bias=bias, reduction="sum", **options)
        return first + second

    for some_count in (True, False):
        target = targets(some_count)
        found = torch.autograd.grad(losses(target), (logits, input, weight, bias), torch.tensor(math.nan))
        assert_zero(found[0][target == -100], found[1][target == -100])
        assert some_count or not any(g.count_nonzero() for g in found)


@every_dtype
@every_reduction
def test_no_rows_at_all(dtype: torch.dtype, reduction: str) -> None:
    ids, target = integers(27, (0, 3)), integers(27, (0,))
    shapes = ((27, 4), (7, 12), (7,), (27, 7), (27,))
    parameters = [normal(*shape, dtype=dtype).requires_grad_() for shape in shapes]
    input, weight = (
        normal(0, FEATURES, dtype=dtype).requires_grad_(),
        normal(27, FEATURES, dtype=dtype).requires_grad_(),
    )
    probabilities = normal(0, 27, dtype=dtype)
    for value in UPSTREAMS:
        for way in ({"retain_graph": True}, {"create_graph": True}, {}):
            loss = ops.mlp_cross_entropy(ids, target, *parameters, reduction=reduction)
            assert_zero(*torch.autograd.grad(loss, parameters, torch.full_like(loss, value), **way))
            for of_rows in (target, probabilities):
                loss = ops.linear_cross_entropy(input, weight, of_rows, reduction=reduction)
                assert_zero(*torch.autograd.grad(loss, (input, weight), torch.full_like(loss, value), **way))
            output = ops.embedding_linear(ids, *parameters[:3])
            assert_zero(*torch.autograd.grad(output, parameters[:3], torch.full_like(output, value), **way))


@every_dtype
def test_what_is_not_a_number_in_an_ignored_row_of_logits(dtype: torch.dtype) -> None:
    for value in (math.nan, math.inf, -math.inf):
        for options in ({}, {"softcap": 2.0}, {"z_loss": 0.1}, {"label_smoothing": 0.1}):
            target = targets(True)
            logits = normal(ROWS, CLASSES, dtype=dtype)
            logits = logits.masked_fill((target == -100)[:, None], value).requires_grad_()
            loss = ops.cross_entropy(logits, target, **options)
            for way in ({"create_graph": True}, {}):
                (gradient,) = torch.autograd.grad(loss, logits, **way)
                assert_zero(gradient[target == -100])
                assert gradient.isfinite().all()
