"""Small calls go past the dispatcher, and nobody notices but by the time that they take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, integers, normal
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from charlm import _C, ops
from charlm.ops import _direct, reference

pytestmark = pytest.mark.cpu

V, D, H, N, T = 11, 5, 24, 9, 3
OPTIONS = ops._arguments._DEFAULTS[1]  # of the mean


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


@pytest.mark.parametrize("dtype", DTYPES)
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
    found = _direct.linear_cross_entropy_forward(hidden, weight, target, bias, None, OPTIONS, True, False, False, False)
    assert found is not None
    assert found[1] is None
    assert found[3:] == (None, None)


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


@pytest.mark.parametrize(
    ("dtype", "seen"), [(torch.float32, "scale_gradients_"), (torch.float16, "cross_entropy_backward")]
)
def test_who_watches_a_backward_sees_the_op(dtype: torch.dtype, seen: str) -> None:
    logits, target = cross_entropy_inputs(dtype)
    losses = [ops.cross_entropy(logits, target) for _ in range(3)]
    with Watching() as watching:
        losses[0].backward()
    assert f"charlm.{seen}.default" in watching.seen
    with torch.profiler.profile() as profile:
        losses[1].backward()
    assert f"charlm::{seen}" in {event.key for event in profile.key_averages()}
    assert logits.grad is not None
    watched = logits.grad.clone()
    logits.grad = None
    losses[2].backward()
    torch.testing.assert_close(logits.grad * 2, watched)


def test_ids_and_targets_of_any_layout_and_type() -> None:
    ids, target, *parameters = mlp_inputs()
    expected = ops.mlp_cross_entropy(ids, target, *parameters)
    gradients = torch.autograd.grad(expected, parameters)
    for few in (ids.t().contiguous().t(), ids.int(), torch.cat([ids + 1, ids], 1)[:, T:]):
        found = ops.mlp_cross_entropy(few, torch.stack([target, target + 1], 1)[:, 0].short(), *parameters)
        assert took() == "mlp_cross_entropy_forward/direct"
        assert torch.equal(found, expected)
        for one, other in zip(torch.autograd.grad(found, parameters), gradients, strict=True):
            assert torch.equal(one, other)


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
    "negated": lambda t: torch._neg_view(-t),
    "four dimensions": lambda t: t[:, :, None, None],
    "one dimension": lambda t: t[0],
    "none": lambda t: t[:0],
    "cut short": cut_short,
    "freed": lambda t: cut_short(cut_short(cut_short(t[:1, :1]))),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "no tensor": lambda t: t.tolist(),
    "integers": lambda t: t.long(),
}


def cross_entropy_directly(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> object:
    return _direct.cross_entropy_forward(logits, target, weight, OPTIONS, False, True, False)


def linear_directly(input: Tensor, linear_weight: Tensor, target: Tensor) -> object:
    return _direct.linear_cross_entropy_forward(input, linear_weight, target, None, None, OPTIONS, *[True] * 3, False)


@pytest.mark.parametrize("kind", OTHERS)
def test_it_is_for_plain_tensors_alone(kind: str) -> None:
    logits, weight, target = normal(N, V, dtype=torch.float32), normal(V, V, dtype=torch.float32), integers(V, (N,))
    class_weight = normal(V, dtype=torch.float32)
    assert cross_entropy_directly(logits, target, class_weight) is not None
    assert cross_entropy_directly(OTHERS[kind](logits), target) is None
    assert linear_directly(logits, weight, target) is not None
    assert linear_directly(OTHERS[kind](logits), weight, target) is None
    assert linear_directly(logits, OTHERS[kind](weight), target) is None
    if kind in ("a subclass", "negated", "cut short", "sparse", "meta", "no tensor", "integers"):
        assert cross_entropy_directly(logits, target, OTHERS[kind](class_weight)) is None


@pytest.mark.parametrize(
    "target",
    [
        integers(V, (N - 1,)),
        integers(V, (N, 1)),
        integers(V, (N, V)),
        normal(N, V),  # probabilities in another dtype
        normal(N, dtype=torch.float32),
        integers(V, (N,)) > 3,
    ],
    ids=lambda t: f"{t.dtype} {tuple(t.shape)}",
)
def test_targets_that_do_not_fit(target: Tensor) -> None:
    assert cross_entropy_directly(normal(N, V, dtype=torch.float32), target) is None
    assert linear_directly(normal(N, D, dtype=torch.float32), normal(V, D, dtype=torch.float32), target) is None


def test_layers_that_do_not_fit() -> None:
    input, weight, target = normal(N, D, dtype=torch.float32), normal(V, D, dtype=torch.float32), integers(V, (N,))
    assert linear_directly(input, weight[:, 1:].contiguous(), target) is None
    assert linear_directly(input, weight.t().contiguous().t(), target) is None
    assert linear_directly(input.t().contiguous().t(), weight, target) is None
    assert linear_directly(input, weight.double(), target) is None
    assert linear_directly(input.bfloat16(), weight.bfloat16(), target) is None


def test_what_forward_keeps_must_be_what_it_kept() -> None:
    logits, target, upstream = normal(N, V, dtype=torch.float32), integers(V, (N,)), torch.ones(())
    found = _direct.cross_entropy_forward(logits, target, None, OPTIONS, True, False, False)
    assert found is not None
    lse = found[1]
    assert isinstance(lse, Tensor)

    def gradient(upstream: Tensor, lse: Tensor) -> Tensor | None:
        return _direct.cross_entropy_backward(upstream, logits, target, None, lse, OPTIONS)

    assert gradient(upstream, lse) is not None
    for other in (lse[:1], lse[1:], lse.view(1, -1), lse.repeat_interleave(2)[::2], lse.double()):
        assert gradient(upstream, other) is None
    for other in (torch.ones(1), torch.ones(N), torch.tensor(1)):
        assert gradient(other, lse) is None


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


@pytest.mark.parametrize("arguments", [(), (1, 2), *((None,) * count for count in range(3, 13))], ids=len)
def test_any_arguments(arguments: tuple) -> None:
    assert _C.cross_entropy_forward(*arguments) is None
    assert _C.cross_entropy_backward(*arguments) is None
    assert _C.linear_cross_entropy_forward(*arguments) is None
    assert _C.linear_cross_entropy_backward(*arguments) is None
    assert _C.mlp_cross_entropy_forward(*arguments) is None
    assert _C.scale_gradients(*arguments) is False


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2**17), (torch.float16, 2**17), (torch.float64, 2**14)])
def test_large_calls_are_for_the_op(dtype: torch.dtype, most: int) -> None:
    """Each side of the threshold, forward and backward."""

    def ways(rows: int) -> list[str]:
        logits, taken = normal(rows, 32, dtype=dtype).requires_grad_(), []
        loss = ops.cross_entropy(logits, integers(32, (rows,)))
        taken.append(took())
        loss.backward(torch.tensor(0.5, dtype=dtype))
        return [*taken, took()]

    backward = "cross_entropy_backward" if dtype == torch.float16 else "scale_gradients"
    assert ways(most // 32) == ["cross_entropy_forward/direct", f"{backward}/direct"]
    forward, backward = ways(2**17 // 32 + 1)
    assert forward == "cross_entropy_forward/op"
    assert not backward.endswith("/direct")
    assert ways(most // 32 + 1)[0] == "cross_entropy_forward/op"


def test_large_layers_are_for_the_op() -> None:
    """Eight times as many multiplications count as one number of a loss."""

    def ways(rows: int) -> list[str]:
        layer, taken = leaves((rows, 8), (32, 8)), []
        losses = ops.linear_cross_entropy(*layer, integers(32, (rows,)), reduction="none")
        taken.append(took())
        losses.sum().backward()
        return [way.split("/")[1] for way in (*taken, took())]

    assert ways(_direct.SMALL // 32) == ["direct", "direct"]
    assert ways(_direct.SMALL // 32 + 1) == ["chunks", "chunks"]


def scaled(*gradients: Tensor, scale: object, target: Tensor | None = None, most: int = 1000) -> bool:
    target = integers(V, (N,)) if target is None else target
    return _C.scale_gradients([*gradients], scale, target, -100, most)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_upstream_gradient_of_one(dtype: torch.dtype) -> None:
    gradient = normal(N, V, dtype=dtype)
    before = gradient.clone()
    assert scaled(gradient, gradient, scale=torch.ones((), dtype=dtype), most=0)
    assert torch.equal(gradient, before)
    for other in (torch.zeros(()), torch.tensor(1.0 + 2**-20), torch.tensor(torch.inf)):
        assert not scaled(gradient, scale=other, most=N * V - 1)
    others = (torch.ones(1), torch.ones(N + 1), torch.ones(N, 1), torch.tensor(1), torch.tensor(torch.nan), None, 1.0)
    for other in others:
        assert not scaled(gradient, scale=other)
    assert not scaled(gradient, gradient, scale=torch.ones(N))
    assert not scaled(gradient, gradient.t(), scale=torch.tensor(0.5))
    assert not scaled(gradient, scale=torch.ones(N), target=integers(V, (N + 1,)))
    assert torch.equal(gradient, before)


def in_both_orders(*shape: int, dtype: torch.dtype) -> list[Tensor]:
    """The same numbers by rows and by columns."""
    tensor = normal(*shape, dtype=dtype)
    return [tensor, tensor.movedim(-1, 0).contiguous().movedim(0, -1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(V,), (N, V), (2, V, 3)])
def test_gradients_are_scaled_where_they_are(shape: tuple[int, ...], dtype: torch.dtype, instruction_set: str) -> None:
    for gradient in in_both_orders(*shape, dtype=dtype):
        expected = (gradient.double() * 0.25).to(dtype)
        assert scaled(gradient, scale=torch.tensor(0.25))
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(N, V), (2, V, 3)])
def test_rows_are_scaled_if_they_count(shape: tuple[int, ...], dtype: torch.dtype, instruction_set: str) -> None:
    rows = (shape[0], *shape[2:])
    target, factors = integers(V, rows, seed=1), normal(*rows, dtype=dtype, seed=2)
    target[0], factors[0] = -100, torch.nan
    for gradient in in_both_orders(*shape, dtype=dtype):
        gradient[0] = 0.0
        expected = gradient * factors.nan_to_num(0.0).unsqueeze(1)
        assert scaled(gradient, scale=factors, target=target)
        torch.testing.assert_close(gradient, expected)


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
        "loss = ops.cross_entropy(x, torch.tensor([1, 2], device='cpu'))\n"
        "branch = _C.last_branch()\n"
        "loss.backward()\n"
        "print(branch, loss.item(), loss.dtype, x.grad.tolist())"
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
