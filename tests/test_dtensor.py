"""The ops on DTensors: every op with every placement of its arguments, on 2 ranks and on a mesh of 2 x 2.

What the ranks find is compared with the same op on the whole tensors, and its placements with those of PyTorch's ops.
Shards are uneven: 7 rows, 5 or 9 classes and 9 hidden units among 2 ranks.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dtensor_models
import pytest
import torch
import torch.nn.functional as F
from cases import (
    ALL_LOSS_OPTIONS,
    REDUCTIONS,
    TARGETS,
    Sample,
    cross_entropy_sample,
    embedding_linear_sample,
    evaluate,
    integers,
    linear_cross_entropy_sample,
    mlp_cross_entropy_sample,
    normal,
)
from processes import run_once
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.parallel import loss_parallel
from torch.utils._python_dispatch import TorchDispatchMode

from charlm import ops

pytestmark = pytest.mark.cpu

WHOLE, PART = Replicate(), Partial()
ROWS, SECOND, THIRD = Shard(0), Shard(1), Shard(2)

# A sample, and where its arguments are placed, in each dimension of the mesh: Replicate for those that are not named.
Case = tuple[Sample, dict[str, Any]]
# What was found, and the placements that it had.
Found = dict[str, tuple[Tensor, tuple[Placement, ...]]]


def loss_cases() -> dict[str, Case]:
    """Every reduction and kind of target, with and without all options, in every placement that an op tells apart."""
    cases: dict[str, Case] = {}
    for reduction in REDUCTIONS:
        for targets in TARGETS:
            for options in ({}, ALL_LOSS_OPTIONS) if reduction == "mean" else (ALL_LOSS_OPTIONS,):
                arguments: Any = {"targets": targets, "reduction": reduction, **options}
                name = f"{reduction}, {targets}, {'all options' if options else 'plain'}: "
                logits = cross_entropy_sample(7, 5, **arguments)
                cases |= {
                    name + "logits whole": (logits, {}),
                    name + "logits by rows": (logits, {"input": ROWS, "target": ROWS, "weight": ROWS}),
                    name + "logits by rows, target whole": (logits, {"input": ROWS}),
                    name + "logits whole, target by rows": (logits, {"target": ROWS}),
                    name + "logits partial": (logits, {"input": PART}),
                    name + "logits by classes": (logits, {"input": SECOND}),
                }
                image = cross_entropy_sample(4, 5, 3, **arguments)
                cases |= {
                    name + "image by pixels": (image, {"input": THIRD}),
                    name + "image by classes": (image, {"input": SECOND}),
                }
                layer = linear_cross_entropy_sample((7, 2), 5, 9, **arguments)
                by_class: dict[str, Placement] = {"linear_weight": ROWS, "linear_bias": ROWS}
                cases |= {
                    name + "layer whole": (layer, {}),
                    name + "layer by rows": (layer, {"input": ROWS, "target": ROWS}),
                    name + "layer by positions": (layer, {"input": SECOND, "target": SECOND}),
                    name + "layer by classes": (layer, by_class),
                    name + "layer by classes, input by positions": (layer, {"input": SECOND, "linear_weight": ROWS}),
                    name + "layer, input partial": (layer, {"input": PART, "linear_weight": SECOND}),
                    name + "layer, input by features": (layer, {"input": THIRD, "linear_bias": ROWS}),
                }
    return cases


def other_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for reduction in REDUCTIONS:
        network = mlp_cross_entropy_sample(7, targets="ignored", reduction=reduction, softcap=3.0)
        without_labels = network.with_arguments(target=torch.full((7,), -100))
        one_row = linear_cross_entropy_sample((), 5, 9, reduction=reduction, label_smoothing=0.1)
        no_rows = linear_cross_entropy_sample(0, 5, 9, reduction=reduction)
        ignored = cross_entropy_sample(7, 5, reduction=reduction)
        ignored = ignored.with_arguments(target=torch.full((7,), -100))
        here = ignored.arguments["target"].clone()
        here[0] = 2
        by_class: dict[str, Placement] = {"weight1": ROWS, "bias1": ROWS, "weight2": ROWS, "bias2": ROWS}
        cases |= {
            f"{reduction}: network whole": (network, {}),
            f"{reduction}: network by rows": (network, {"ids": ROWS, "target": ROWS}),
            f"{reduction}: network by rows, all ignored": (without_labels, {"ids": ROWS}),
            f"{reduction}: network, parameters sharded": (network, {"ids": ROWS, "embedding": ROWS, "weight1": SECOND}),
            f"{reduction}: network, ids by positions": (network, {"ids": SECOND, "target": ROWS}),
            f"{reduction}: network, both layers": (network, by_class),
            f"{reduction}: network, first layer": (network, {"weight1": ROWS}),
            f"{reduction}: network, second layer": (network, {"ids": ROWS, "weight2": ROWS}),
            f"{reduction}: one row of logits": (cross_entropy_sample(5, reduction=reduction), {"input": ROWS}),
            f"{reduction}: one row": (cross_entropy_sample(1, 5, reduction=reduction), {"input": ROWS}),
            f"{reduction}: no rows": (cross_entropy_sample(0, 5, reduction=reduction), {"input": ROWS}),
            f"{reduction}: one class": (cross_entropy_sample(7, 1, reduction=reduction), {"input": SECOND}),
            f"{reduction}: one row of a layer": (one_row, {"linear_weight": ROWS}),
            f"{reduction}: no rows of a layer": (no_rows, {"linear_weight": ROWS}),
            f"{reduction}: no rows of a layer by rows": (no_rows, {"input": ROWS}),
            f"{reduction}: all ignored": (ignored, {"input": ROWS}),
            f"{reduction}: all ignored, by classes": (ignored, {"input": SECOND}),
            f"{reduction}: one rank ignores all": (ignored.with_arguments(target=here), {"input": ROWS}),
        }
    for shape in ((7,), (3, 4), ()):
        contexts = embedding_linear_sample(shape)
        positions = Shard(len(shape))
        cases |= {
            f"contexts {shape}: whole": (contexts, {}),
            f"contexts {shape}: ids by positions": (contexts, {"ids": positions}),
            f"contexts {shape}: by hidden units": (contexts, {"weight": ROWS, "bias": ROWS}),
            f"contexts {shape}: by hidden units, bias whole": (contexts, {"weight": ROWS}),
            f"contexts {shape}: weight by columns": (contexts, {"weight": SECOND}),
            f"contexts {shape}: embedding by tokens": (contexts, {"embedding": ROWS}),
            f"contexts {shape}: partial bias": (contexts, {"bias": PART}),
        }
    for activation in ("relu", "gelu", "silu", "none"):
        contexts = embedding_linear_sample(7, activation=activation)
        cases[f"{activation}: by rows"] = contexts, {"ids": ROWS}
        cases[f"{activation}: by rows and hidden units"] = contexts, {"ids": ROWS, "weight": ROWS, "embedding": SECOND}
    weighted = cross_entropy_sample(7, 5, weighted=True, targets="probabilities", label_smoothing=0.1)
    weighted = Sample(weighted.op, weighted.arguments, ("input", "target", "weight"))
    cases["gradient of the class weights"] = weighted, {"input": ROWS, "weight": ROWS}
    return cases


def mesh_cases() -> dict[str, Case]:
    """On 2 x 2 ranks."""
    cases: dict[str, Any] = {}
    for reduction in REDUCTIONS:
        options: Any = {"reduction": reduction, "targets": "ignored", **ALL_LOSS_OPTIONS}
        logits = cross_entropy_sample(7, 5, **options)
        layer = linear_cross_entropy_sample((5, 3), 5, 9, **options)
        contexts, network = embedding_linear_sample((5, 3)), mlp_cross_entropy_sample(7, reduction=reduction)
        cases |= {
            f"{reduction}: logits by rows": (logits, {"input": (ROWS, WHOLE), "target": (ROWS, WHOLE)}),
            f"{reduction}: logits by rows twice": (logits, {"input": (ROWS, ROWS)}),
            f"{reduction}: logits by rows and classes": (logits, {"input": (ROWS, SECOND), "target": (ROWS, WHOLE)}),
            f"{reduction}: logits by classes and rows": (logits, {"input": (SECOND, ROWS)}),
            f"{reduction}: logits by classes twice": (logits, {"input": (SECOND, SECOND)}),
            f"{reduction}: logits partial and by rows": (logits, {"input": (PART, ROWS)}),
            f"{reduction}: layer by rows and positions": (layer, {"input": (ROWS, SECOND)}),
            f"{reduction}: layer by rows and classes": (
                layer,
                {"input": (ROWS, SECOND), "linear_weight": (WHOLE, ROWS), "linear_bias": (WHOLE, ROWS)},
            ),
            f"{reduction}: layer with a sharded copy": (
                layer,
                {"input": (ROWS, WHOLE), "linear_weight": (SECOND, ROWS)},
            ),
            f"{reduction}: network by rows": (network, {"ids": (ROWS, WHOLE), "target": (ROWS, WHOLE)}),
            f"{reduction}: network by rows and layers": (
                network,
                {"ids": (ROWS, WHOLE), "weight1": (WHOLE, ROWS), "weight2": (WHOLE, ROWS)},
            ),
        }
    cases["contexts by rows and hidden units"] = contexts, {"ids": (ROWS, WHOLE), "weight": (WHOLE, ROWS)}
    cases["contexts by rows and positions"] = contexts, {"ids": (ROWS, SECOND)}
    return cases


def torch_cases() -> dict[str, Case]:
    """Where PyTorch has a result to compare with: rows that divide, none of them ignored."""
    cases: dict[str, Case] = {}
    for reduction in REDUCTIONS:
        # Means with class weights are wrong in torch 2.13, where the ranks' rows have other weights together.
        logits = cross_entropy_sample(8, 5, reduction=reduction, weighted=reduction != "mean")
        uniform = cross_entropy_sample(8, 6, reduction=reduction)
        layer = linear_cross_entropy_sample((8,), 5, 10, reduction=reduction)
        probabilities = cross_entropy_sample(8, 5, reduction=reduction, targets="probabilities")
        cases |= {
            f"{reduction}: logits whole": (logits, {}),
            f"{reduction}: logits by rows": (logits, {"input": ROWS, "target": ROWS}),
            f"{reduction}: logits by rows, target whole": (logits, {"input": ROWS}),
            f"{reduction}: logits partial": (logits, {"input": PART}),
            f"{reduction}: logits by classes": (uniform, {"input": SECOND}),
            f"{reduction}: probabilities by rows": (probabilities, {"input": ROWS, "target": ROWS}),
            f"{reduction}: layer whole": (layer, {}),
            f"{reduction}: layer by rows": (layer, {"input": ROWS, "target": ROWS}),
            f"{reduction}: layer by classes": (layer, {"linear_weight": ROWS, "linear_bias": ROWS}),
        }
    contexts = embedding_linear_sample(8)
    cases |= {
        "contexts whole": (contexts, {}),
        "contexts by rows": (contexts, {"ids": ROWS}),
        "contexts by hidden units": (contexts, {"weight": ROWS, "bias": ROWS}),
    }
    return cases


class Torch:
    """The ops as PyTorch would have them computed on DTensors."""

    cross_entropy = staticmethod(F.cross_entropy)

    @staticmethod
    def linear_cross_entropy(
        input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor, weight: None, reduction: str
    ) -> Tensor:
        return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, weight, reduction=reduction)

    @staticmethod
    def embedding_linear(ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        return torch.tanh(F.linear(F.embedding(ids, embedding).flatten(-2), weight, bias))


def distribute(value: Tensor, mesh: DeviceMesh, placements: list[Placement]) -> DTensor:
    """`distribute_tensor` without a message: every rank has the value."""
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


def spread(value: Tensor, mesh: DeviceMesh, placements: Any) -> DTensor:
    """A DTensor of that value; a partial one is 1/4 of it on one rank and 3/4 on the other."""
    each = (placements,) if isinstance(placements, Placement) else placements
    share = 1.0
    for dim, placement in enumerate(each):
        share *= (0.25, 0.75)[mesh.get_local_rank(dim)] if placement.is_partial() else 1.0
    whole = [WHOLE if placement.is_partial() else placement for placement in each]
    own = distribute(value, mesh, whole).to_local()
    own = own * share if share != 1.0 else own
    return DTensor.from_local(own, mesh, each, run_check=False, shape=value.shape, stride=value.stride())


def arguments_of(case: Case, mesh: DeviceMesh) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of the call, and those of them that are differentiated."""
    sample, placements = case
    everywhere = (WHOLE,) * mesh.ndim
    arguments = {
        name: spread(value, mesh, placements.get(name, everywhere)) if isinstance(value, Tensor) else value
        for name, value in sample.arguments.items()
    }
    leaves = {name: arguments[name].detach().requires_grad_() for name in sample.differentiable}
    return arguments | leaves, leaves


def find(case: Case, mesh: DeviceMesh, namespace: Any = ops) -> Found:
    arguments, leaves = arguments_of(case, mesh)
    result = getattr(namespace, case[0].op)(**arguments)
    upstream = distribute(normal(*result.shape, seed=99).to(result.dtype), mesh, [WHOLE] * mesh.ndim)
    gradients = torch.autograd.grad(result, list(leaves.values()), upstream)
    named = {"result": result.detach()} | {f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}
    return {name: (value.full_tensor(), value.placements) for name, value in named.items()}


def find_under_loss_parallel(case: Case, mesh: DeviceMesh) -> tuple[Found, Found]:
    """Ours and PyTorch's; loss_parallel is for logits that are sharded by classes, and for nothing else."""
    by_class = case[1].get("input") == SECOND or "linear_weight" in case[1]
    if not by_class:
        return find(case, mesh), find(case, mesh, Torch)
    with loss_parallel():
        return find(case, mesh), find(case, mesh, Torch)


class Watch(TorchDispatchMode):
    """The charlm ops that run, and the shapes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "charlm":
            self.calls.append((function._opname, [tuple(t.shape) for t in args if isinstance(t, Tensor)]))
        return function(*args, **(kwargs or {}))


def kernels_of(mesh: DeviceMesh) -> dict[str, Any]:
    """What each op by rows, and embedding_linear by hidden units, asks of the kernels on this rank."""
    cases: dict[str, Case] = {
        "cross_entropy": (cross_entropy_sample(7, 5), {"input": ROWS}),
        "linear_cross_entropy": (linear_cross_entropy_sample(7, 5, 9), {"input": ROWS}),
        "mlp_cross_entropy": (mlp_cross_entropy_sample(7), {"ids": ROWS}),
        "embedding_linear": (embedding_linear_sample(7), {"ids": ROWS}),
        "embedding_linear by hidden units": (embedding_linear_sample(7), {"weight": ROWS}),
    }
    found = {}
    for name, case in cases.items():
        with Watch() as watch:
            find(case, mesh)
        found[name] = watch.calls
    return found


def message_of(call: Callable[[], Any]) -> str:
    kinds = (IndexError, ValueError, TypeError, RuntimeError)
    try:
        call()
    except kinds as error:
        kind = next(kind for kind in kinds if isinstance(error, kind))
        return f"{kind.__name__}: {error}"
    return "none"


def errors_of(mesh: DeviceMesh) -> dict[str, str]:
    rows = distribute(normal(7, 5), mesh, [ROWS]).requires_grad_()
    classes = distribute(normal(7, 5), mesh, [SECOND]).requires_grad_()
    target = distribute(integers(5, (7,)), mesh, [WHOLE])
    ids = distribute(integers(9, (7, 2)), mesh, [ROWS])
    table, layer, bias = (distribute(normal(*shape), mesh, [WHOLE]) for shape in ((9, 3), (4, 6), (3,)))
    outside = distribute(torch.tensor([0, 1, 2, 31, 4, 0, 1]), mesh, [WHOLE])
    short = distribute(integers(5, (6,)), mesh, [WHOLE])
    weight = distribute(torch.ones(4).double(), mesh, [WHOLE])
    other_mesh = DeviceMesh("cpu", torch.tensor([1, 0]))
    hidden, output = (distribute(normal(*shape), mesh, [WHOLE]) for shape in ((7, 4), (5, 4)))
    hidden.requires_grad_()
    sliced = distribute(normal(5, 4), mesh, [ROWS])
    by_class = ops.linear_cross_entropy(hidden, sliced, target)
    return {
        "a plain target": message_of(lambda: ops.cross_entropy(rows, target.full_tensor())),
        "a plain input": message_of(lambda: ops.cross_entropy(normal(7, 5), target)),
        "plain parameters": message_of(lambda: ops.embedding_linear(ids, table, layer.full_tensor())),
        "plain ids": message_of(lambda: ops.embedding_linear(ids.full_tensor(), table, layer)),
        "a plain weight": message_of(lambda: ops.linear_cross_entropy(hidden, output.full_tensor(), target)),
        "another mesh": message_of(lambda: ops.cross_entropy(rows, distribute(integers(5, (7,)), other_mesh, [WHOLE]))),
        "target shape": message_of(lambda: ops.cross_entropy(rows, short)),
        "target shape, by classes": message_of(lambda: ops.cross_entropy(classes, short)),
        "bias shape": message_of(lambda: ops.embedding_linear(ids, table, layer, bias)),
        "class weights": message_of(lambda: ops.cross_entropy(classes, target, weight)),
        "outside": message_of(lambda: ops.cross_entropy(rows.detach().redistribute(placements=[WHOLE]), outside)),
        "outside, by classes": message_of(lambda: ops.cross_entropy(classes, outside)),
        "smoothing, by classes": message_of(lambda: ops.cross_entropy(classes, target, label_smoothing=2.0)),
        "integer logits": message_of(lambda: ops.cross_entropy(classes.detach().long(), target)),
        "second derivative, by classes": message_of(
            lambda: torch.autograd.grad(by_class.full_tensor(), hidden, create_graph=True)
        ),
    }


def second_derivatives(case: Case, mesh: DeviceMesh) -> dict[str, Tensor]:
    """The gradients of the squared length of the gradients."""
    arguments, leaves = arguments_of(case, mesh)
    result = getattr(ops, case[0].op)(**arguments).full_tensor().square().sum()
    gradients = torch.autograd.grad(result, list(leaves.values()), create_graph=True)
    length = sum((gradient.full_tensor().square().sum() for gradient in gradients), torch.zeros(()))
    second = torch.autograd.grad(length, list(leaves.values()))
    return dict(zip(leaves, (gradient.full_tensor() for gradient in second), strict=True))


def second_derivative_cases() -> dict[str, Case]:
    return {
        "logits by rows": (cross_entropy_sample(7, 5, targets="ignored", **ALL_LOSS_OPTIONS), {"input": ROWS}),
        "layer by rows": (linear_cross_entropy_sample(7, 5, 9, targets="ignored"), {"input": ROWS}),
        "network by rows": (mlp_cross_entropy_sample(7), {"ids": ROWS}),
        "contexts by hidden units": (embedding_linear_sample(7), {"weight": ROWS}),
    }


def dtype_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = linear_cross_entropy_sample(70, 16, 29, dtype=dtype, targets="ignored")
        cases |= {
            f"{dtype}: logits by rows": (cross_entropy_sample(70, 29, dtype=dtype), {"input": ROWS}),
            f"{dtype}: logits by classes": (cross_entropy_sample(70, 29, dtype=dtype), {"input": SECOND}),
            f"{dtype}: layer by rows": (layer, {"input": ROWS}),
            f"{dtype}: layer by classes": (layer, {"linear_weight": ROWS}),
            f"{dtype}: contexts by rows": (embedding_linear_sample(70, dtype=dtype), {"ids": ROWS}),
            f"{dtype}: network by rows": (mlp_cross_entropy_sample(70, dtype=dtype), {"ids": ROWS}),
        }
    return cases


def autocast_cases() -> dict[str, Case]:
    return {name: case for name, case in dtype_cases().items() if name.startswith("torch.float32")}


def modes_of(mesh: DeviceMesh) -> dict[str, Any]:
    """Results under PyTorch's modes; each has its equal by the plain op in `expected_modes`."""
    logits, target = normal(7, 5), integers(5, (7,))
    rows, classes = (distribute(logits, mesh, [placement]) for placement in (ROWS, SECOND))
    everywhere = distribute(target, mesh, [WHOLE])
    with torch.no_grad():
        without_gradients = ops.cross_entropy(rows.clone().requires_grad_(), everywhere)
    with implicit_replication():
        implicit = ops.cross_entropy(rows, target)
    one = ops.cross_entropy(distribute(logits[:1], mesh, [WHOLE]), target[:1])
    one_by_classes = ops.cross_entropy(distribute(logits[0], mesh, [ROWS]), everywhere_of(target[:1], mesh))
    with_plain_target = ops.cross_entropy(classes, target)
    found = {
        "no_grad": without_gradients,
        "implicit_replication": implicit,
        "loss_parallel's target": with_plain_target,
    }
    assert not without_gradients.requires_grad
    leaf = rows.clone().detach().requires_grad_()
    loss = torch.compile(ops.cross_entropy, backend="aot_eager", fullgraph=True)(leaf, everywhere)
    (gradient,) = torch.autograd.grad(loss.full_tensor(), leaf)
    found["compiled"] = loss.detach()
    contexts, _ = arguments_of((embedding_linear_sample(7), {"weight": ROWS, "bias": ROWS}), mesh)
    hidden = torch.compile(ops.embedding_linear, backend="aot_eager", fullgraph=True)(**contexts)
    return {
        "found": {name: value.full_tensor() for name, value in found.items()},
        "one": [one.full_tensor(), one_by_classes.full_tensor()],
        "compiled gradient": gradient.full_tensor(),
        "compiled hidden units": hidden.detach().full_tensor(),
    }


def everywhere_of(value: Tensor, mesh: DeviceMesh) -> DTensor:
    return distribute(value, mesh, [WHOLE] * mesh.ndim)


def worker(folder: Path) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    with torch.autocast("cpu", torch.bfloat16):
        autocast = {name: find(case, mesh) for name, case in autocast_cases().items()}
    return {
        "found": {name: find(case, mesh) for name, case in (loss_cases() | other_cases()).items()},
        "torch": {name: find_under_loss_parallel(case, mesh) for name, case in torch_cases().items()},
        "dtypes": {name: find(case, mesh) for name, case in dtype_cases().items()},
        "autocast": autocast,
        "second": {name: second_derivatives(case, mesh) for name, case in second_derivative_cases().items()},
        "kernels": kernels_of(mesh),
        "modes": modes_of(mesh),
        "training": dtensor_models.one_dimension(mesh),
        "errors": errors_of(mesh),
    }


def sharded_twice(mesh: DeviceMesh) -> Found:
    """A layer by rows with the parameters as FSDP2 keeps them over tensor parallelism: strided shards."""
    linear = dtensor_models.sharded_twice(mesh).output.linear
    parameters = {"linear_weight": linear.weight, "linear_bias": linear.bias}
    both = linear.weight.device_mesh
    input, target = spread(normal(7, 8), both, (ROWS, WHOLE)), everywhere_of(integers(27, (7,)), both)
    loss = ops.linear_cross_entropy(input, target=target, **parameters)
    gradients = torch.autograd.grad(loss.full_tensor(), list(parameters.values()))
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        assert gradient.placements == parameter.placements
    found = zip(("result", "gradient of linear_weight", "gradient of linear_bias"), (loss, *gradients), strict=True)
    return {name: (value.detach().full_tensor(), value.placements) for name, value in found}


def worker_of_four(folder: Path) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    pair = DeviceMesh("cpu", torch.tensor([0, 1]))
    logits = distribute(normal(7, 5), pair, [ROWS])
    return {
        "found": {name: find(case, mesh) for name, case in mesh_cases().items()},
        "training": dtensor_models.two_dimensions(mesh),
        "sharded twice": sharded_twice(mesh),
        "outside": message_of(lambda: ops.cross_entropy(logits, everywhere_of(integers(5, (7,)), pair))),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of 2 ranks found."""
    return run_once(worker, 2, tmp_path_factory)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of 2 x 2 ranks found."""
    return run_once(worker_of_four, 4, tmp_path_factory)


def assert_equals_the_op(ranks: list[Found], sample: Sample) -> None:
    """Every rank has found what the op finds on the whole tensors."""
    expected = evaluate(sample, ops)
    for found in ranks:
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key][0], value, rtol=1e-12, atol=1e-13, equal_nan=True, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize("name", loss_cases())
def test_losses_in_every_placement_are_those_of_the_whole(ranks: list[dict[str, Any]], name: str) -> None:
    assert_equals_the_op([rank["found"][name] for rank in ranks], loss_cases()[name][0])


@pytest.mark.parametrize("name", other_cases())
def test_contexts_networks_and_edges_are_those_of_the_whole(ranks: list[dict[str, Any]], name: str) -> None:
    assert_equals_the_op([rank["found"][name] for rank in ranks], other_cases()[name][0])


@pytest.mark.parametrize("name", mesh_cases())
def test_a_mesh_of_two_dimensions(four_ranks: list[dict[str, Any]], name: str) -> None:
    assert_equals_the_op([rank["found"][name] for rank in four_ranks], mesh_cases()[name][0])


@pytest.mark.parametrize("name", torch_cases())
def test_values_and_placements_are_those_of_torch(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        ours, torchs = rank["torch"][name]
        for key, (value, placements) in torchs.items():
            torch.testing.assert_close(ours[key][0], value, rtol=1e-12, atol=1e-13)
            assert ours[key][1] == placements, key


@pytest.mark.parametrize(
    ("name", "key", "placement"),
    [
        ("none, indices, all options: layer by positions", "result", SECOND),
        ("mean, indices, plain: layer by classes, input by positions", "gradient of input", SECOND),
        ("mean, indices, plain: layer by classes, input by positions", "gradient of linear_weight", ROWS),
        ("mean, indices, plain: layer by classes, input by positions", "gradient of linear_bias", WHOLE),
        ("mean, indices, plain: layer, input partial", "gradient of input", WHOLE),
        ("mean, indices, plain: layer, input partial", "gradient of linear_weight", SECOND),
        ("mean, indices, plain: layer, input by features", "gradient of input", THIRD),
        ("mean: network by rows", "gradient of weight1", PART),
        ("mean: network, both layers", "gradient of weight1", ROWS),
        ("mean: network, both layers", "gradient of embedding", PART),
        ("contexts (7,): embedding by tokens", "gradient of embedding", ROWS),
        ("relu: by rows and hidden units", "result", SECOND),
    ],
)
def test_a_gradient_is_placed_as_its_argument(
    ranks: list[dict[str, Any]], name: str, key: str, placement: Placement
) -> None:
    for rank in ranks:
        assert rank["found"][name][key][1] == (placement,)


@pytest.mark.parametrize("name", dtype_cases())
def test_every_dtype_is_as_good_as_on_the_whole(ranks: list[dict[str, Any]], name: str) -> None:
    assert_near_the_op([rank["dtypes"][name] for rank in ranks], dtype_cases()[name][0])


@pytest.mark.parametrize("name", autocast_cases())
def test_autocast(ranks: list[dict[str, Any]], name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert_near_the_op([rank["autocast"][name] for rank in ranks], autocast_cases()[name][0])


def assert_near_the_op(ranks: list[Found], sample: Sample) -> None:
    """A rank rounds its part of a sum, so that a number may be off by a few units in the last place of the largest."""
    expected = evaluate(sample, ops)
    for found in ranks:
        for key, value in expected.items():
            assert found[key][0].dtype == value.dtype
            rounding = torch.finfo(torch.bfloat16 if torch.is_autocast_enabled("cpu") else value.dtype).eps
            largest = value.abs().max().item()
            torch.testing.assert_close(found[key][0], value, rtol=0.0, atol=4 * rounding * max(largest, 1e-3))


@pytest.mark.parametrize("name", second_derivative_cases())
def test_second_derivatives(ranks: list[dict[str, Any]], name: str) -> None:
    sample = second_derivative_cases()[name][0]
    leaves = sample.leaves()
    result = sample.call(getattr(ops, sample.op), leaves).square().sum()
    gradients = torch.autograd.grad(result, list(leaves.values()), create_graph=True)
    length = sum((gradient.square().sum() for gradient in gradients), torch.zeros(()))
    expected = dict(zip(leaves, torch.autograd.grad(length, list(leaves.values())), strict=True))
    for rank in ranks:
        torch.testing.assert_close(rank["second"][name], expected, rtol=1e-10, atol=1e-12)


def test_the_kernels_run_on_the_rows_of_each_rank(ranks: list[dict[str, Any]]) -> None:
    for rows, units, rank in zip((4, 3), (5, 4), ranks, strict=True):
        forward = {name: calls[0] for name, calls in rank["kernels"].items()}
        assert {name: op for name, (op, _) in forward.items()} == {
            "cross_entropy": "cross_entropy_forward",
            "linear_cross_entropy": "linear_cross_entropy_forward",
            "mlp_cross_entropy": "mlp_cross_entropy_forward",
            "embedding_linear": "embedding_linear_forward",
            "embedding_linear by hidden units": "embedding_linear_forward",
        }
        shapes = {name: shapes for name, (_, shapes) in forward.items()}
        assert shapes["cross_entropy"] == [(rows, 5), (rows,)]
        assert shapes["linear_cross_entropy"] == [(rows, 5), (9, 5), (rows,), (9,)]
        assert shapes["mlp_cross_entropy"][:2] == [(rows, 3), (rows,)]
        assert shapes["embedding_linear"] == [(rows, 3), (27, 4), (9, 12), (9,)]
        assert shapes["embedding_linear by hidden units"] == [(7, 3), (27, 4), (units, 12), (units,)]
        assert "embedding_linear_backward" in [op for op, _ in rank["kernels"]["embedding_linear by hidden units"]]


def test_modes_of_torch(ranks: list[dict[str, Any]]) -> None:
    logits, target = normal(7, 5), integers(5, (7,))
    leaf = logits.clone().requires_grad_()
    loss = ops.cross_entropy(leaf, target)
    (gradient,) = torch.autograd.grad(loss, leaf)
    for rank in ranks:
        for value in rank["modes"]["found"].values():
            torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0.0)
        torch.testing.assert_close(rank["modes"]["one"], [ops.cross_entropy(logits[:1], target[:1])] * 2)
        torch.testing.assert_close(rank["modes"]["compiled gradient"], gradient, rtol=1e-12, atol=1e-15)
        hidden = ops.embedding_linear(**embedding_linear_sample(7).arguments)
        torch.testing.assert_close(rank["modes"]["compiled hidden units"], hidden, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "way",
    [
        "tensor parallel, charlm.nn",
        "tensor parallel, output layer",
        "tensor parallel, logits",
        "tensor parallel, loss_parallel",
    ],
)
def test_training_in_tensor_parallel_has_the_losses_of_one_process(ranks: list[dict[str, Any]], way: str) -> None:
    model = dtensor_models.names() if "charlm.nn" in way else dtensor_models.text("layer" in way)
    expected = dtensor_models.train(model)
    assert expected[-1] < expected[0]
    for rank in ranks:
        assert rank["training"][way] == pytest.approx(expected, rel=1e-9)


def test_training_under_fsdp2_has_the_losses_of_one_process(ranks: list[dict[str, Any]]) -> None:
    whole, halves = dtensor_models.names(), [rank["training"]["FSDP2"] for rank in ranks]
    assert [sum(two) / 2 for two in zip(*halves, strict=True)] == pytest.approx(
        dtensor_models.train_in_halves(whole), rel=1e-9
    )


def test_training_under_fsdp2_and_tensor_parallel(four_ranks: list[dict[str, Any]]) -> None:
    first, second, third, fourth = (rank["training"] for rank in four_ranks)
    assert (first, third) == (second, fourth)
    expected = dtensor_models.train_in_halves(dtensor_models.text())
    assert [sum(two) / 2 for two in zip(first, third, strict=True)] == pytest.approx(expected, rel=1e-9)


def test_parameters_that_fsdp2_shards_further(four_ranks: list[dict[str, Any]]) -> None:
    linear = dtensor_models.text().output.linear
    parameters = {"linear_weight": linear.weight.detach(), "linear_bias": linear.bias.detach()}
    arguments = {"input": normal(7, 8), "target": integers(27, (7,)), **parameters}
    # The upstream gradient is 1 here, as of a loss.
    leaves = Sample("linear_cross_entropy", arguments, tuple(parameters)).leaves()
    loss = ops.linear_cross_entropy(**arguments | leaves)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    expected = dict(zip([f"gradient of {name}" for name in leaves], gradients, strict=True)) | {"result": loss.detach()}
    for rank in four_ranks:
        for key, (value, _) in rank["sharded twice"].items():
            torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-13)


def test_errors_name_the_argument(ranks: list[dict[str, Any]]) -> None:
    mixed = "got mixed torch.Tensor and DTensor"
    fix = "must be a DTensor too, as by torch.distributed.tensor.distribute_tensor"
    for rank in ranks:
        errors = dict(rank["errors"])
        assert mixed in errors.pop("a plain input")
        assert mixed in errors.pop("plain ids")
        assert errors == {
            "a plain target": f"RuntimeError: {mixed}: target {fix}",
            "plain parameters": f"RuntimeError: {mixed}: weight {fix}",
            "a plain weight": f"RuntimeError: {mixed}: linear_weight {fix}",
            "another mesh": "ValueError: target must be on the mesh of the other DTensors, of ranks [0, 1], got one of "
            "ranks [1, 0]",
            "target shape": "ValueError: target must have shape (7,) or (7, 5), got (6,)",
            "target shape, by classes": "ValueError: target must have shape (7,) or (7, 5), got (6,)",
            "bias shape": "ValueError: bias must have shape (4,), got (3,)",
            "class weights": "ValueError: weight must have shape (V=5,), got (4,)",
            "outside": "IndexError: target[3] = 31 is out of range for 5 classes",
            "outside, by classes": "IndexError: target[3] = 31 is out of range for 5 classes",
            "smoothing, by classes": "ValueError: label_smoothing must be between 0 and 1, got 2.0",
            "integer logits": "ValueError: input must be float32, float64, bfloat16 or float16, got torch.int64",
            "second derivative, by classes": "RuntimeError: a loss whose classes are spread over processes has no "
            "second derivative",
        }


def test_a_process_outside_of_the_mesh_is_told_so(four_ranks: list[dict[str, Any]]) -> None:
    told = "RuntimeError: this process is not in the mesh of the DTensors, of ranks [0, 1]"
    assert [rank["outside"] for rank in four_ranks] == ["none", "none", told, told]


def test_a_plain_call_imports_nothing_of_torch_distributed_tensor() -> None:
    lines = (
        "import sys, torch",
        "from charlm import ops",
        "ops.cross_entropy(torch.nn.Parameter(torch.zeros(2, 3)), torch.tensor([0, 1])).backward()",
        "print({'charlm.distributed', 'torch.distributed.tensor'} & set(sys.modules))",
    )
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
