"""Every op through every transform of torch.func and every order of differentiation, against reference or a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    ALL_LOG_PROBS_OPTIONS,
    ALL_LOSS_OPTIONS,
    Sample,
    cross_entropy_sample,
    device,
    embedding_linear_sample,
    generator,
    integers,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
    normal,
)
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from charlm import ops
from charlm.nn import LinearCrossEntropyLoss
from charlm.ops import _transforms, reference

SAMPLES = {
    "embedding_linear": embedding_linear_sample(3, 2, 4, 2, 3),
    "embedding_linear, few rows": embedding_linear_sample(2, 2, 40, 2, 3, activation="gelu"),
    "embedding_linear, no bias": embedding_linear_sample((2, 1), 2, 4, 2, 3, activation="silu", bias=False),
    "cross_entropy, mean": cross_entropy_sample(4, 5, targets="ignored"),
    "cross_entropy, none": cross_entropy_sample(4, 5, targets="ignored", reduction="none", **ALL_LOSS_OPTIONS),
    "cross_entropy, sum": cross_entropy_sample(4, 5, reduction="sum", softcap=2.0, weighted=True),
    "cross_entropy, smoothed": cross_entropy_sample(4, 5, targets="ignored", weighted=True, label_smoothing=0.2),
    "cross_entropy, one row": cross_entropy_sample(5, z_loss=0.1),
    "cross_entropy, pixels": cross_entropy_sample(2, 3, 2, 1, targets="ignored", **ALL_LOSS_OPTIONS),
    "cross_entropy, probabilities": cross_entropy_sample(2, 4, targets="probabilities", **ALL_LOSS_OPTIONS),
    "cross_entropy, token weights": cross_entropy_sample(4, 5, targets="ignored", token_weighted=True),
    "cross_entropy, gradient of token weights": replace(
        cross_entropy_sample(4, 5, targets="ignored", weighted=True, token_weighted=True, z_loss=0.1),
        differentiable=("input", "token_weights"),
    ),
    "linear_cross_entropy, token weights": linear_cross_entropy_sample(4, 2, 5, token_weighted=True),
    "linear_cross_entropy, mean": linear_cross_entropy_sample(4, 2, 5, targets="ignored"),
    "linear_cross_entropy, few rows": linear_cross_entropy_sample(2, 3, 4, **ALL_LOSS_OPTIONS),
    "linear_cross_entropy, none": linear_cross_entropy_sample((2, 1), 2, 4, reduction="none", softcap=2.0),
    "linear_cross_entropy, probabilities": linear_cross_entropy_sample(2, 2, 4, targets="probabilities", z_loss=0.1),
    "mlp_cross_entropy, mean": mlp_cross_entropy_sample(4, 2, 4, 2, 3),
    "mlp_cross_entropy, none": mlp_cross_entropy_sample(
        3, 2, 4, 2, 3, targets="ignored", reduction="none", softcap=2.0
    ),
    "log_probs": log_probs_sample(2, 2, 5, **ALL_LOG_PROBS_OPTIONS),
    "log_probs, several": log_probs_sample(4, 5, ids_per_row=2, ignored=True),
    "log_probs, one row": log_probs_sample(5, ids_per_row=0),
    "linear_log_probs": linear_log_probs_sample((2, 1), 2, 4, bias=False),
    "linear_log_probs, few rows": linear_log_probs_sample(2, 3, 4),
    "linear_log_probs, several": linear_log_probs_sample(4, 2, 5, ids_per_row=2, ignored=True, **ALL_LOG_PROBS_OPTIONS),
}
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
every_argument = pytest.mark.parametrize(
    ("sample", "name"),
    [
        pytest.param(sample, name, id=f"{key}: {name}")
        for key, sample in SAMPLES.items()
        for name, value in sample.arguments.items()
        if isinstance(value, Tensor)
    ],
)
# One of each op: tracing takes a second.
LINEARIZED = ["embedding_linear", "cross_entropy, mean", "linear_cross_entropy, mean", "mlp_cross_entropy, mean"]
LINEARIZED += ["log_probs", "linear_log_probs"]
BATCH = 3  # not the number of rows of a sample whose mean is over rows: one must not be taken for the other


def primals(sample: Sample) -> tuple[Tensor, ...]:
    """The differentiable arguments, which do not require gradients."""
    return tuple(sample.arguments[name] for name in sample.differentiable)


def directions(sample: Sample, seed: int = 50) -> tuple[Tensor, ...]:
    return tuple(normal(*p.shape, seed=seed + i).to(p) for i, p in enumerate(primals(sample)))


def function_of(sample: Sample, namespace: Any = ops) -> Callable[..., Tensor]:
    """The op as a function of its differentiable arguments."""
    return lambda *values: sample.call(
        getattr(namespace, sample.op), dict(zip(sample.differentiable, values, strict=True))
    )


def weights_like(result: Tensor) -> Tensor:
    return torch.arange(1.0, result.numel() + 1.0, device=result.device).cos().to(result.dtype).reshape(result.shape)


def scalar(sample: Sample, namespace: Any = ops) -> Callable[..., Tensor]:
    """A number that depends on every element of the result, each in its own way."""
    function = function_of(sample, namespace)

    def total(*values: Tensor) -> Tensor:
        result = function(*values)
        return (result * weights_like(result)).sum()

    return total


def truth(sample: Sample, order: int) -> tuple[Tensor, ...]:
    """Gradients, or (2) the products of the Hessian with `directions`, of the reference by plain autograd."""
    leaves = tuple(p.clone().requires_grad_() for p in primals(sample))
    gradients = torch.autograd.grad(scalar(sample, reference)(*leaves), leaves, create_graph=order == 2)
    if order == 1:
        return gradients
    return torch.autograd.grad(gradients, leaves, directions(sample), materialize_grads=True)


def stacked(sample: Sample, seed: int = 60) -> dict[str, Tensor]:
    """`BATCH` different values of every tensor argument: noise for floating ones, a permutation of integers."""
    source = generator(seed)
    found = {}
    for name, value in sample.arguments.items():
        if not isinstance(value, Tensor):
            continue
        if value.is_floating_point():
            noise = 0.1 * torch.rand(BATCH, *value.shape, generator=source, dtype=value.dtype)
            found[name] = value + noise.to(device)
        else:
            flat = value.reshape(-1)
            shuffled = [flat[torch.randperm(flat.numel(), generator=source).to(device)] for _ in range(BATCH)]
            found[name] = torch.stack(shuffled).reshape(BATCH, *value.shape)
    return found


def mapped_call(sample: Sample, names: list[str], namespace: Any = ops) -> Callable[..., Tensor]:
    """The op as a function of the named arguments."""
    return lambda *values: sample.call(getattr(namespace, sample.op), dict(zip(names, values, strict=True)))


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11, equal_nan=False)


# Second order and higher.


@every_sample
def test_gradcheck_in_every_mode(sample: Sample) -> None:
    leaves = tuple(sample.leaves().values())
    function = function_of(sample)
    assert gradcheck(
        function,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=True,
    )
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


@every_sample
def test_hessian_vector_product_by_double_backward(sample: Sample) -> None:
    leaves = tuple(sample.leaves().values())
    gradients = torch.autograd.grad(scalar(sample)(*leaves), leaves, create_graph=True)
    close(tuple(g.detach() for g in gradients), truth(sample, 1))
    products = torch.autograd.grad(gradients, leaves, directions(sample), materialize_grads=True)
    close(products, truth(sample, 2))


@every_sample
def test_gradient_penalty(sample: Sample) -> None:
    def penalised(namespace: Any) -> tuple[Tensor, ...]:
        leaves = tuple(sample.leaves().values())
        loss = scalar(sample, namespace)(*leaves)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        (loss + sum(g.square().sum() for g in gradients)).backward()
        return tuple(leaf.grad for leaf in leaves if leaf.grad is not None)

    close(penalised(ops), penalised(reference))


@every_sample
def test_third_derivative(sample: Sample) -> None:
    def third(namespace: Any) -> tuple[Tensor, ...]:
        leaves = tuple(sample.leaves().values())
        value: Any = scalar(sample, namespace)(*leaves)
        for order in range(3):
            found = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
            parts = (g * d for g, d in zip(found, directions(sample, 10 * order), strict=True))
            value = sum(part.sin().sum() for part in parts)
        return tuple(g.detach() for g in found)

    close(third(ops), third(reference))


@every_sample
def test_second_order_of_what_is_between_ops(sample: Sample) -> None:
    """The upstream gradient and the arguments both depend on the leaf."""

    def of(namespace: Any) -> Tensor:
        scale = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
        loss = scalar(sample, namespace)(*(scale * p for p in primals(sample))).sin() * scale
        (first,) = torch.autograd.grad(loss, scale, create_graph=True)
        (second,) = torch.autograd.grad(first, scale)
        return second

    close(of(ops), of(reference))


@every_sample
def test_hooks_run_once_when_backward_is_differentiated(sample: Sample) -> None:
    leaves = tuple(leaf * 1.0 for leaf in sample.leaves().values())
    calls = [0] * len(leaves)

    def counting(index: int) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            calls[index] += 1
            return 2.0 * gradient

        return hook

    for index, leaf in enumerate(leaves):
        leaf.register_hook(counting(index))
    found = torch.autograd.grad(scalar(sample)(*leaves), leaves, create_graph=True)
    assert calls == [1] * len(leaves)
    close(tuple(g.detach() for g in found), tuple(2.0 * g for g in truth(sample, 1)))


@every_sample
def test_second_order_among_saved_tensor_hooks(sample: Sample) -> None:
    leaves = tuple(sample.leaves().values())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
        gradients = torch.autograd.grad(scalar(sample)(*leaves), leaves, create_graph=True)
    products = torch.autograd.grad(gradients, leaves, directions(sample), materialize_grads=True)
    close(products, truth(sample, 2))


# torch.func, one transform at a time.


@every_sample
def test_grad_and_value(sample: Sample) -> None:
    argnums = tuple(range(len(sample.differentiable)))
    gradients, value = torch.func.grad_and_value(scalar(sample), argnums)(*primals(sample))
    close(value, scalar(sample, reference)(*primals(sample)))
    close(gradients, truth(sample, 1))


@every_sample
def test_vjp(sample: Sample) -> None:
    result, pull = vjp(function_of(sample), *primals(sample))
    close(result, function_of(sample, reference)(*primals(sample)))
    close(pull(weights_like(result)), truth(sample, 1))


@every_sample
def test_jvp(sample: Sample) -> None:
    expected = sum((g * d).sum() for g, d in zip(truth(sample, 1), directions(sample), strict=True))
    value, tangent = jvp(scalar(sample), primals(sample), directions(sample))
    close(value, scalar(sample, reference)(*primals(sample)))
    close(tangent, expected)


# Of torch's own tracer, about any tensor that the function closes over.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.parametrize("sample", [SAMPLES[name] for name in LINEARIZED], ids=LINEARIZED)
def test_linearize(sample: Sample) -> None:
    expected = sum((g * d).sum() for g, d in zip(truth(sample, 1), directions(sample), strict=True))
    value, push = linearize(scalar(sample), *primals(sample))
    close(value, scalar(sample, reference)(*primals(sample)))
    close(push(*directions(sample)), expected)


@every_sample
def test_dual_numbers(sample: Sample) -> None:
    expected = sum((g * d).sum() for g, d in zip(truth(sample, 1), directions(sample), strict=True))
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, primals(sample), directions(sample))
        value, tangent = forward_ad.unpack_dual(scalar(sample)(*duals))
    close(value, scalar(sample, reference)(*primals(sample)))
    close(tangent, expected)


@every_sample
def test_dual_numbers_through_a_graph_from_before(sample: Sample) -> None:
    """Forward over reverse, where only the upstream gradient is dual: the gradient is linear in it."""
    leaves = tuple(sample.leaves().values())
    result = function_of(sample)(*leaves)
    upstream, tangent = normal(*result.shape, seed=1).to(result), weights_like(result)
    with forward_ad.dual_level():
        gradients = torch.autograd.grad(result, leaves, forward_ad.make_dual(upstream, tangent))
        tangents = tuple(forward_ad.unpack_dual(g).tangent for g in gradients)
    close(tangents, truth(sample, 1))


@every_sample
def test_jacobians(sample: Sample) -> None:
    argnums = tuple(range(len(sample.differentiable)))
    leaves = tuple(sample.leaves().values())
    expected = torch.autograd.functional.jacobian(function_of(sample, reference), leaves)
    close(jacrev(function_of(sample), argnums)(*primals(sample)), expected)
    close(jacfwd(function_of(sample), argnums)(*primals(sample)), expected)
    for vectorize in (False, True):
        close(torch.autograd.functional.jacobian(function_of(sample), leaves, vectorize=vectorize), expected)


@every_sample
def test_hessian(sample: Sample) -> None:
    argnums = tuple(range(len(sample.differentiable)))
    expected = torch.autograd.functional.hessian(scalar(sample, reference), primals(sample))
    close(hessian(scalar(sample), argnums)(*primals(sample)), expected)
    close(jacrev(jacrev(scalar(sample), argnums), argnums)(*primals(sample)), expected)
    close(torch.autograd.functional.hessian(scalar(sample), primals(sample)), expected)


@every_argument
def test_vmap_over_one_argument(sample: Sample, name: str) -> None:
    values = stacked(sample)[name]
    call = mapped_call(sample, [name])
    expected = torch.stack([call(value) for value in values])
    close(vmap(call)(values), expected)
    close(vmap(call, in_dims=-1, out_dims=-1)(values.movedim(0, -1)), expected.movedim(0, -1))


@every_sample
def test_vmap_over_all_arguments(sample: Sample) -> None:
    values = stacked(sample)
    call = mapped_call(sample, list(values))
    expected = torch.stack([call(*each) for each in zip(*values.values(), strict=True)])
    close(vmap(call)(*values.values()), expected)
    twice = [torch.stack([value, value.flip(0)]) for value in values.values()]
    close(vmap(vmap(call))(*twice), torch.stack([expected, expected.flip(0)]))


# Compositions.


@every_argument
def test_gradients_of_each_sample(sample: Sample, name: str) -> None:
    """vmap(grad(...)): the gradients of all arguments, for each value of one of them."""
    values = stacked(sample)[name]
    names = sample.differentiable
    argnums = tuple(range(len(names)))

    def gradients(value: Tensor, *parameters: Tensor) -> Any:
        changed = sample.with_arguments(**{name: value})
        if name not in names:
            return grad(scalar(changed), argnums)(*parameters)
        own = names.index(name)
        return grad(scalar(changed), argnums)(*parameters[:own], value, *parameters[own + 1 :])

    expected = [truth(sample.with_arguments(**{name: value}), 1) for value in values]
    in_dims = (0, *[None] * len(names))
    found = vmap(gradients, in_dims)(values, *primals(sample))
    close(found, tuple(map(torch.stack, zip(*expected, strict=True))))


@every_argument
def test_vjp_of_a_gradient_for_each_sample(sample: Sample, name: str) -> None:
    """vmap(vjp(grad(...))): of the gradient of each argument alone, and of all, for each value of one of them."""
    values = stacked(sample)[name]
    names = sample.differentiable
    everything = tuple(range(len(names)))

    def products(namespace: Any, argnums: tuple[int, ...]) -> Any:
        def of_one(value: Tensor) -> Any:
            changed = sample.with_arguments(**{name: value})
            parameters = [value if other == name else p for other, p in zip(names, primals(sample), strict=True)]
            gradients, pull = vjp(grad(scalar(changed, namespace), argnums), *parameters)
            return pull(tuple(map(weights_like, gradients)))

        return vmap(of_one)(values)

    for argnums in {everything, *((index,) for index in everything)}:
        close(products(ops, argnums), products(reference, argnums))


@every_sample
def test_gradients_of_each_sample_of_all_arguments(sample: Sample) -> None:
    values = stacked(sample)
    names = list(values)

    def gradients(*each: Tensor) -> Any:
        changed = sample.with_arguments(**dict(zip(names, each, strict=True)))
        return grad(scalar(changed), tuple(range(len(sample.differentiable))))(*primals(changed))

    samples = [sample.with_arguments(**dict(zip(names, e, strict=True))) for e in zip(*values.values(), strict=True)]
    expected = zip(*(truth(each, 1) for each in samples), strict=True)
    close(vmap(gradients)(*values.values()), tuple(map(torch.stack, expected)))


@every_sample
def test_hessian_vector_products_by_composition(sample: Sample) -> None:
    argnums = tuple(range(len(sample.differentiable)))
    points, along = primals(sample), directions(sample)
    gradient = grad(scalar(sample), argnums)

    def slope(*values: Tensor) -> Tensor:
        return jvp(scalar(sample), values, along)[1]

    def projected(*values: Tensor) -> Tensor:
        return sum(
            ((g * d).sum() for g, d in zip(gradient(*values), along, strict=True)), torch.zeros(()).to(values[0])
        )

    expected = truth(sample, 2)
    close(jvp(gradient, points, along)[1], expected)  # forward over reverse
    close(grad(slope, argnums)(*points), expected)  # reverse over forward
    close(grad(projected, argnums)(*points), expected)  # reverse over reverse
    twice = vmap(lambda scale: jvp(gradient, points, tuple(scale * d for d in along))[1])
    scales = torch.tensor([1.0, -2.0]).to(points[0])
    close(twice(scales), tuple(torch.stack([product, -2.0 * product]) for product in expected))


@every_sample
def test_hessians_of_each_sample(sample: Sample) -> None:
    name = sample.differentiable[0]
    values = stacked(sample)[name]

    def total(value: Tensor) -> Tensor:
        return scalar(sample)(value, *primals(sample)[1:])

    def reference_total(value: Tensor) -> Tensor:
        return scalar(sample, reference)(value, *primals(sample)[1:])

    expected = torch.stack([torch.autograd.functional.hessian(reference_total, value) for value in values])
    close(vmap(hessian(total))(values), expected)
    close(vmap(jacrev(jacrev(total)))(values), expected)


@every_sample
def test_torch_func_inside_plain_autograd(sample: Sample) -> None:
    """Leaves that torch.func knows nothing of receive their gradients through it."""
    leaves = tuple(sample.leaves().values())
    gradients = grad(scalar(sample), tuple(range(len(leaves))))(*leaves)
    close(tuple(g.detach() for g in gradients), truth(sample, 1))
    close(torch.autograd.grad(gradients, leaves, directions(sample), materialize_grads=True), truth(sample, 2))


@every_sample
def test_functionalize(sample: Sample) -> None:
    close(torch.func.functionalize(function_of(sample))(*primals(sample)), function_of(sample)(*primals(sample)))


# What is behind it.


def test_kernels_compute_values_and_first_gradients_under_torch_func(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the reference ran")

    monkeypatch.setattr(_transforms, "by_reference", refuse)
    input, target = normal(BATCH, 4, 5), integers(5, (BATCH, 4))
    weight, token_weights = normal(5, 2), normal(BATCH, 4, seed=1)
    grad(ops.cross_entropy)(input[0], target[0])
    vmap(ops.cross_entropy)(input, target)
    vmap(grad(ops.cross_entropy))(input, target)
    grad(lambda logits: vmap(ops.cross_entropy)(logits, target).sum())(input)
    hidden = normal(BATCH, 4, 2)

    def weighted(input: Tensor, target: Tensor, token_weights: Tensor) -> Tensor:
        return ops.cross_entropy(input, target, token_weights=token_weights)

    def weighted_layer(input: Tensor, target: Tensor, token_weights: Tensor) -> Tensor:
        return ops.linear_cross_entropy(input, weight, target, token_weights=token_weights)

    for in_dims in ((0, 0, 0), (0, 0, None)):
        weights = token_weights if in_dims[2] == 0 else token_weights[0]
        vmap(grad(weighted), in_dims)(input, target, weights)
        vmap(grad(weighted_layer), in_dims)(hidden, target, weights)
    grad(ops.linear_cross_entropy, (0, 1))(hidden[0], weight, target[0])
    vmap(grad(ops.linear_cross_entropy), (0, None, 0))(hidden, weight, target)
    grad(lambda logits: ops.log_probs(logits, target[0]).entropy.sum())(input[0])
    vmap(ops.log_probs)(input, target)
    vmap(grad(lambda logits, ids: ops.log_probs(logits, ids).log_probs.sum()))(input, target)
    vmap(grad(lambda h, w, y: ops.linear_log_probs(h, w, y).logsumexp.sum()), (0, None, 0))(hidden, weight, target)
    ids, table, layer = integers(5, (BATCH, 4, 2)), normal(5, 2), normal(3, 4)
    grad(lambda *parameters: vmap(ops.embedding_linear, (0, None, None))(ids, *parameters).sum(), (0, 1))(table, layer)
    with pytest.raises(AssertionError, match="the reference ran"):
        jvp(lambda z: ops.cross_entropy(z, target[0]), (input[0],), (input[1],))


@pytest.mark.parametrize("op", ["log_probs", "linear_log_probs"])
def test_argmax_and_rank_come_out_of_transforms(op: str) -> None:
    sample = log_probs_sample(4, 5, ids_per_row=2, ignored=True)
    if op == "linear_log_probs":
        sample = linear_log_probs_sample(4, 2, 5, ids_per_row=2, ignored=True)
    values = stacked(sample)

    def call(*given: Tensor) -> ops.LogProbs:
        return getattr(ops, op)(**{**sample.arguments, **dict(zip(values, given, strict=True))})

    expected = [call(*each) for each in zip(*values.values(), strict=True)]
    found = vmap(call)(*values.values())
    one = tuple(value[0] for value in values.values())

    def with_results(input: Tensor) -> tuple[Tensor, ops.LogProbs]:
        results = call(input, *one[1:])
        return results.entropy.sum(), results

    forward, _, aux = jvp(with_results, one[:1], one[:1], has_aux=True)
    close(forward, expected[0].entropy.sum())
    for results, others in (
        (found, [torch.stack(each) for each in zip(*expected, strict=True)]),
        (grad(with_results, has_aux=True)(one[0])[1], expected[0]),
        (aux, expected[0]),
    ):
        assert type(results) is ops.LogProbs
        assert results.argmax.dtype == results.rank.dtype == torch.int64
        close(tuple(results), tuple(others))


def test_per_sample_gradients_of_a_module() -> None:
    loss = LinearCrossEntropyLoss(3, 5, bias=True, device=device, dtype=torch.float64)
    parameters = {name: value.detach() for name, value in loss.named_parameters()}
    input, target = normal(7, 2, 3), integers(5, (7, 2))

    def one(parameters: dict[str, Tensor], input: Tensor, target: Tensor) -> Tensor:
        return functional_call(loss, parameters, (input, target))

    found = vmap(grad(one), (None, 0, 0))(parameters, input, target)
    for n in range(7):
        loss.zero_grad()
        loss(input[n], target[n]).backward()
        close({name: value[n] for name, value in found.items()}, {k: p.grad for k, p in loss.named_parameters()})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_sample
def test_half_precision(sample: Sample, dtype: torch.dtype) -> None:
    """Transforms compute in float32, as the kernels do, and round what they return."""
    half = sample.to(dtype)
    wide = half.to(torch.float64)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    value, tangent = jvp(function_of(half), primals(half), directions(half))
    true_value, true_tangent = jvp(
        function_of(wide, reference), primals(wide), tuple(d.double() for d in directions(half))
    )
    assert value.dtype == tangent.dtype == dtype
    torch.testing.assert_close(value.double(), true_value, **tolerance)
    torch.testing.assert_close(tangent.double(), true_tangent, **tolerance)
    argnums = tuple(range(len(sample.differentiable)))
    found = grad(lambda *v: function_of(half)(*v).double().sum(), argnums)(*primals(half))
    true = grad(lambda *v: function_of(wide, reference)(*v).sum(), argnums)(*primals(wide))
    assert all(g.dtype == dtype for g in found)
    torch.testing.assert_close(tuple(g.double() for g in found), true, **tolerance)
    leaves = tuple(half.leaves().values())
    gradients = torch.autograd.grad(function_of(half)(*leaves).double().sum(), leaves, create_graph=True)
    torch.testing.assert_close(tuple(g.detach().double() for g in gradients), true, **tolerance)


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
def test_class_weights_that_require_a_gradient(op: str) -> None:
    """As in torch: for probabilities they have one, for class indices that is an error, not a silent zero."""
    arguments = {"input": normal(4, 3), "linear_weight": normal(5, 3), "reduction": "sum"}
    if op == "cross_entropy":
        arguments = {"input": normal(4, 5), "reduction": "sum"}
    weight = torch.rand(5, dtype=torch.float64, device=device, requires_grad=True)
    probabilities = normal(4, 5, seed=3).softmax(1)

    def loss(namespace: Any, weight: Tensor) -> Tensor:
        return getattr(namespace, op)(**arguments, target=probabilities, weight=weight)

    expected = torch.autograd.grad(loss(reference, weight), weight)
    close(torch.autograd.grad(loss(ops, weight), weight), expected)
    close(grad(lambda w: loss(ops, w))(weight.detach()), expected[0])
    target = integers(5, (4,))
    with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'weight'"):
        getattr(ops, op)(**arguments, target=target, weight=weight)
    with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'weight'"):
        grad(lambda w: getattr(ops, op)(**arguments, target=target, weight=w))(weight.detach())
