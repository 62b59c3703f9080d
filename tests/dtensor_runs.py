"""What each rank finds when it runs the ops on DTensors: values and gradients, placements, kernels, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dtensor_models
import torch
import torch.nn.functional as F
from cases import (
    cross_entropy_sample,
    embedding_linear_sample,
    integers,
    joined,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
    normal,
)
from dtensor_cases import (
    ROWS,
    SECOND,
    WHOLE,
    Case,
    autocast_cases,
    dtype_cases,
    log_probs_cases,
    loss_cases,
    mesh_cases,
    other_cases,
    second_derivative_cases,
    torch_cases,
)
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.parallel import loss_parallel
from torch.utils._python_dispatch import TorchDispatchMode

from charlm import ops

# What was found, and the placements that it had.
Found = dict[str, tuple[Tensor, tuple[Placement, ...]]]


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
    results = results_of(getattr(namespace, case[0].op)(**arguments))
    differentiable = [value for value in results.values() if value.is_floating_point()]
    sizes = [value.numel() for value in differentiable]
    upstream = [
        distribute(numbers.reshape(value.shape).to(value.dtype), mesh, [WHOLE] * mesh.ndim)
        for value, numbers in zip(differentiable, normal(sum(sizes), seed=99).split(sizes), strict=True)
    ]
    gradients = torch.autograd.grad(differentiable, list(leaves.values()), upstream)
    named = {name: value.detach() for name, value in results.items()}
    named |= {f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}
    found = {name: (value.full_tensor(), value.placements) for name, value in named.items()}
    if "result" not in results:
        found["result"] = joined(ops.LogProbs(*(found[name][0] for name in results))), ()
    return found


def results_of(found: Any) -> dict[str, DTensor]:
    """What an op returned, by name."""
    return {"result": found} if isinstance(found, Tensor) else found._asdict()


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
        "log_probs": (log_probs_sample(7, 5, ids_per_row=2), {"input": ROWS}),
        "linear_log_probs": (linear_log_probs_sample(7, 5, 9), {"input": ROWS}),
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
    entropy_by_class = ops.linear_log_probs(hidden, sliced, target).entropy
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
        "token weights, shape": message_of(lambda: ops.cross_entropy(rows, target, token_weights=weight)),
        "token weights, by classes": message_of(lambda: ops.cross_entropy(classes, target, token_weights=target)),
        "plain token weights": message_of(lambda: ops.cross_entropy(rows, target, token_weights=normal(7))),
        "outside": message_of(lambda: ops.cross_entropy(rows.detach().redistribute(placements=[WHOLE]), outside)),
        "outside, by classes": message_of(lambda: ops.cross_entropy(classes, outside)),
        "smoothing, by classes": message_of(lambda: ops.cross_entropy(classes, target, label_smoothing=2.0)),
        "integer logits": message_of(lambda: ops.cross_entropy(classes.detach().long(), target)),
        "second derivative, by classes": message_of(
            lambda: torch.autograd.grad(by_class.full_tensor(), hidden, create_graph=True)
        ),
        "plain ids of log_probs": message_of(lambda: ops.log_probs(rows, target.full_tensor())),
        "ids shape": message_of(lambda: ops.log_probs(rows, short)),
        "ids shape, by classes": message_of(lambda: ops.linear_log_probs(hidden, sliced, short)),
        "ids outside, by classes": message_of(lambda: ops.log_probs(classes, outside)),
        "ids dtype, by classes": message_of(lambda: ops.linear_log_probs(hidden, sliced, target.double())),
        "temperature, by classes": message_of(lambda: ops.log_probs(classes.float(), target, temperature=1e-40)),
        "second derivative of log_probs, by classes": message_of(
            lambda: torch.autograd.grad(entropy_by_class.sum().full_tensor(), hidden, create_graph=True)
        ),
    }


def second_derivatives(case: Case, mesh: DeviceMesh) -> dict[str, Tensor]:
    """The gradients of the squared length of the gradients."""
    arguments, leaves = arguments_of(case, mesh)
    results = results_of(getattr(ops, case[0].op)(**arguments)).values()
    squares = [value.full_tensor().square().sum() for value in results if value.is_floating_point()]
    gradients = torch.autograd.grad(squares, list(leaves.values()), create_graph=True)
    length = sum((gradient.full_tensor().square().sum() for gradient in gradients), torch.zeros(()))
    second = torch.autograd.grad(length, list(leaves.values()))
    return dict(zip(leaves, (gradient.full_tensor() for gradient in second), strict=True))


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
    entropy = torch.compile(lambda *tensors: ops.log_probs(*tensors).entropy, backend="aot_eager", fullgraph=True)
    hidden_states, head = (distribute(normal(*shape), mesh, [WHOLE]).requires_grad_() for shape in ((7, 4), (5, 4)))
    by_class = torch.compile(lambda *tensors: ops.linear_log_probs(*tensors).log_probs, backend="aot_eager")(
        hidden_states, head.redistribute(placements=[ROWS]), everywhere
    )
    (head_gradient,) = torch.autograd.grad(by_class.sum().full_tensor(), head)
    hidden = torch.compile(ops.embedding_linear, backend="aot_eager", fullgraph=True)(**contexts)
    return {
        "found": {name: value.full_tensor() for name, value in found.items()},
        "one": [one.full_tensor(), one_by_classes.full_tensor()],
        "compiled gradient": gradient.full_tensor(),
        "compiled entropy": entropy(leaf, everywhere).detach().full_tensor(),
        "compiled gradient of a layer by classes": head_gradient.full_tensor(),
        "compiled hidden units": hidden.detach().full_tensor(),
    }


def everywhere_of(value: Tensor, mesh: DeviceMesh) -> DTensor:
    return distribute(value, mesh, [WHOLE] * mesh.ndim)


def worker(folder: Path) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    with torch.autocast("cpu", torch.bfloat16):
        autocast = {name: find(case, mesh) for name, case in autocast_cases().items()}
    return {
        "found": {name: find(case, mesh) for name, case in (loss_cases() | log_probs_cases() | other_cases()).items()},
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
