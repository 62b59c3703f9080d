"""Small calls go past the dispatcher, and nobody notices but by the time that they take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import integers, normal
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from charlm import _C, ops
from charlm.ops import _direct, reference

pytestmark = pytest.mark.cpu

V, D, H, N, T = 11, 5, 24, 9, 3


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [normal(*shape, dtype=dtype, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]


def cross_entropy_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return *leaves((N, V), dtype=dtype), integers(V, (N,))


def linear_inputs() -> tuple[Tensor, ...]:
    hidden, weight, bias = leaves((N, D), (V, D), (V,))
    return hidden, weight, integers(V, (N,)), bias


def mlp_inputs() -> tuple[Tensor, ...]:
    return integers(V, (N, T)), integers(V, (N,)), *leaves((V, D), (H, T * D), (H,), (V, H), (V,))


OPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[[], tuple[Tensor, ...]]]] = {
    "cross_entropy": (ops.cross_entropy, reference.cross_entropy, cross_entropy_inputs),
    "linear_cross_entropy": (
        lambda h, w, t, b, **options: ops.linear_cross_entropy(h, w, t, linear_bias=b, **options),
        lambda h, w, t, b, **options: reference.linear_cross_entropy(h, w, t, linear_bias=b, **options),
        linear_inputs,
    ),
    "mlp_cross_entropy": (ops.mlp_cross_entropy, reference.mlp_cross_entropy, mlp_inputs),
}


def took() -> str:
    """The branch that the last call of an op took."""
    return _C.last_branch()


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"ignore_index": 4, "softcap": 3.0}], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_values_and_gradients(name: str, options: dict, instruction_set: str) -> None:
    op, truth, make = OPS[name]
    tensors = make()
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    loss = op(*tensors, **options)
    assert took() == f"{name}_forward/direct"
    found = torch.autograd.grad(loss, wanted)
    exact = [tensor.detach().double().requires_grad_() if tensor.requires_grad else tensor for tensor in tensors]
    expected = truth(*exact, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-6)
    expected_gradients = torch.autograd.grad(expected, [tensor for tensor in exact if tensor.requires_grad])
    for gradient, right in zip(found, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), right, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_loss_alone(dtype: torch.dtype) -> None:
    logits, target = cross_entropy_inputs(dtype)
    with torch.no_grad():
        loss = ops.cross_entropy(logits, target)
    assert took() == "cross_entropy_forward/direct"
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.double(), F.cross_entropy(logits.double(), target).detach(), rtol=4e-3, atol=0)
    kept = ops.cross_entropy(logits, target, output_dtype=torch.float32)
    torch.testing.assert_close(kept.double(), F.cross_entropy(logits.double(), target), rtol=1e-6, atol=0)


def test_a_frozen_layer_costs_no_gradient() -> None:
    hidden, weight, target, bias = linear_inputs()
    options = ops._arguments._DEFAULTS[1]
    found = _direct.linear_cross_entropy(hidden, weight, target, bias, options, True, False, False)
    assert found is not None
    assert found[2:] == (None, None)


class Watching(TorchDispatchMode):
    """Which ops are seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPS)
def test_who_watches_operations_sees_the_op(name: str) -> None:
    op, _, make = OPS[name]
    tensors = make()
    with Watching() as watching:
        op(*tensors).backward()
    assert f"charlm.{name}_forward.default" in watching.seen
    assert took() != f"{name}_forward/direct"
    with torch.profiler.profile() as profile:
        op(*tensors)
    assert f"charlm::{name}_forward" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("name", OPS)
def test_fake_tensors(name: str) -> None:
    op, _, make = OPS[name]
    tensors = make()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        op(*map(mode.from_tensor, tensors)).backward()


class Subclass(Tensor):
    pass


def cut_short(tensor: Tensor) -> Tensor:
    """A tensor whose storage has less than its shape says."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() // 2)
    return tensor


OTHERS = {
    "a subclass": lambda t: t.as_subclass(Subclass),
    "by columns": lambda t: t.t().contiguous().t(),
    "every other": lambda t: torch.stack([t, t], 2)[:, :, 0],
    "negated": lambda t: torch._neg_view(-t),
    "float64": lambda t: t.double(),
    "three dimensions": lambda t: t[:, :, None],
    "one dimension": lambda t: t[0],
    "none": lambda t: t[:0],
    "cut short": cut_short,
    "freed": lambda t: cut_short(cut_short(cut_short(t[:1, :1]))),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "no tensor": lambda t: t.tolist(),
    "integers": lambda t: t.long(),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_it_is_for_plain_tensors_alone(kind: str) -> None:
    logits, weight, target = normal(N, V, dtype=torch.float32), normal(V, V, dtype=torch.float32), integers(V, (N,))
    options = ops._arguments._DEFAULTS[1]
    assert _direct.cross_entropy(logits, target, options, True, False) is not None
    assert _direct.cross_entropy(OTHERS[kind](logits), target, options, True, False) is None
    wanted = (True, True, False)
    assert _direct.linear_cross_entropy(logits, weight, target, None, options, *wanted) is not None
    assert _direct.linear_cross_entropy(OTHERS[kind](logits), weight, target, None, options, *wanted) is None
    assert _direct.linear_cross_entropy(logits, OTHERS[kind](weight), target, None, options, *wanted) is None


@pytest.mark.parametrize("bad", [-1, V, 2**40])
@pytest.mark.parametrize("name", OPS)
def test_what_is_wrong_is_for_the_op_to_say(name: str, bad: int) -> None:
    op, _, make = OPS[name]
    tensors = list(make())
    place = next(i for i, tensor in enumerate(tensors) if tensor.dtype == torch.int64 and tensor.ndim == 1)
    tensors[place] = tensors[place].clone()
    tensors[place][3] = bad
    with pytest.raises(IndexError, match=rf"^target\[3\] = {bad} is out of range for {V} classes$"):
        op(*tensors)


@pytest.mark.parametrize("arguments", [(), (1, 2), *((None,) * count for count in (5, 6, 8, 11))], ids=len)
def test_any_arguments(arguments: tuple) -> None:
    assert _C.cross_entropy(*arguments) is None
    assert _C.linear_cross_entropy(*arguments) is None
    assert _C.mlp_cross_entropy(*arguments) is None


def test_large_calls_are_for_the_op() -> None:
    rows = _direct.SMALL // V + 1
    ops.cross_entropy(normal(rows, V, dtype=torch.float32).requires_grad_(), integers(V, (rows,)))
    assert took() == "cross_entropy_forward/op"


def test_an_upstream_gradient_of_one() -> None:
    assert _C.is_one(torch.ones(()))
    assert _C.is_one(torch.ones((), dtype=torch.float64))
    assert _C.is_one(torch.ones((), dtype=torch.bfloat16))
    for other in (
        torch.zeros(()),
        torch.tensor(1.0 + 2**-20),
        torch.ones(1),
        torch.ones(2),
        torch.tensor(1),
        None,
        1.0,
    ):
        assert not _C.is_one(other)


@pytest.mark.parametrize("name", OPS)
def test_any_other_upstream_gradient(name: str) -> None:
    op, _, make = OPS[name]
    tensors = make()
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    plain = torch.autograd.grad(op(*tensors), wanted)
    scaled = torch.autograd.grad(op(*tensors), wanted, torch.tensor(0.25))
    loss = op(*tensors)
    kept = [torch.autograd.grad(loss, wanted, retain_graph=True) for _ in range(2)]
    for one, quarter, first, second in zip(plain, scaled, *kept, strict=True):
        assert torch.equal(one * 0.25, quarter)
        assert torch.equal(one, first)
        assert torch.equal(one, second)
        assert first.data_ptr() != second.data_ptr()


def test_second_derivatives_from_a_gradient_in_bfloat16() -> None:
    """Also of rows that are nearly certain, of whose gradients bfloat16 says little."""
    logits = (normal(64, V) * 4).bfloat16().requires_grad_()
    target, probe = integers(V, (64,)), normal(64, V, seed=3).bfloat16()

    def product(function: Callable[..., Tensor], x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(function(x, target, reduction="sum"), x, create_graph=True)
        return torch.autograd.grad(gradient, x, probe.to(x.dtype))[0]

    exact = product(F.cross_entropy, logits.detach().double().requires_grad_())
    found = product(ops.cross_entropy, logits)
    assert exact.abs().max() > 0.3
    for row, right in zip(found.double(), exact, strict=True):  # each row in units of its largest
        assert (row - right).abs().max() <= 2**-6 * right.abs().max() + 1e-6


def test_tiny_calls_run_on_narrow_vectors() -> None:
    """By their bits: sums depend on how wide vectors are."""

    def losses(rows: int, instruction_set: str | None) -> Tensor:
        _C.set_instruction_set(instruction_set)
        try:
            return ops.cross_entropy(normal(rows, 64, dtype=torch.float32), integers(64, (rows,)), reduction="none")
        finally:
            _C.set_instruction_set(None)

    best = _C.instruction_set()
    is_narrow = best in ("x86_64", "generic")
    assert torch.equal(losses(64, None), losses(64, best)) == is_narrow
    assert torch.equal(losses(65, None), losses(65, best))
    if "x86_64" in _C.instruction_sets():
        assert torch.equal(losses(64, None), losses(64, "x86_64"))


def test_defaults_of_torch_change_nothing() -> None:
    """Not even where they are set before the first call."""
    program = (
        "import torch; torch.set_default_dtype(torch.float64); torch.set_default_device('meta')\n"
        "from charlm import ops, _C\n"
        "x = torch.zeros(2, 4, dtype=torch.float32, device='cpu', requires_grad=True)\n"
        "loss = ops.cross_entropy(x, torch.tensor([1, 2], device='cpu')); loss.backward()\n"
        "print(_C.last_branch(), loss.item(), loss.dtype, x.grad.tolist())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    expected = "[[0.125, -0.375, 0.125, 0.125], [0.125, 0.125, -0.375, 0.125]]"
    assert result.stdout.split(" ", 3) == [
        "cross_entropy_forward/direct",
        "1.3862943649291992",
        "torch.float32",
        f"{expected}\n",
    ], result.stderr


def test_the_environment_chooses_an_instruction_set() -> None:
    program = "import torch; from charlm import _C; print(_C.instruction_set())"
    for name in [*_C.instruction_sets(), "abacus"]:
        environment = {**os.environ, "CHARLM_INSTRUCTION_SET": name}
        result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        expected = name if name in _C.instruction_sets() else _C.instruction_set()
        assert result.stdout.strip() == expected, result.stderr
