"""What every op promises to autograd and to its caller, whatever it computes."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from cases import (
    ALL_LOG_PROBS_OPTIONS,
    ALL_LOSS_OPTIONS,
    DTYPES,
    Sample,
    check,
    cross_entropy_sample,
    device,
    embedding_linear_sample,
    evaluate,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
    normal,
    same_bits,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from charlm import _C, ops

SAMPLES = {
    "embedding_linear": embedding_linear_sample(123),
    "embedding_linear, few rows": embedding_linear_sample(5, vocab_size=400),
    "cross_entropy, mean": cross_entropy_sample(9, 27, targets="ignored"),
    "cross_entropy, none": cross_entropy_sample(9, 27, reduction="none", **ALL_LOSS_OPTIONS),
    "cross_entropy, sum": cross_entropy_sample(9, 27, reduction="sum", softcap=2.0),
    "cross_entropy, probabilities": cross_entropy_sample(9, 27, targets="probabilities", **ALL_LOSS_OPTIONS),
    "cross_entropy, pixels": cross_entropy_sample(2, 7, 3, 4, targets="ignored", reduction="none"),
    "cross_entropy, token weights": cross_entropy_sample(9, 27, targets="ignored", token_weighted=True),
    "linear_cross_entropy, token weights": linear_cross_entropy_sample(9, targets="ignored", token_weighted=True),
    "linear_cross_entropy, mean": linear_cross_entropy_sample(9, targets="ignored"),
    "linear_cross_entropy, few rows": linear_cross_entropy_sample(5, 7),
    "linear_cross_entropy, few rows, none": linear_cross_entropy_sample(5, 7, reduction="none"),
    "linear_cross_entropy, none": linear_cross_entropy_sample(9, reduction="none", **ALL_LOSS_OPTIONS),
    "linear_cross_entropy, probabilities": linear_cross_entropy_sample(9, targets="probabilities", **ALL_LOSS_OPTIONS),
    "mlp_cross_entropy, mean": mlp_cross_entropy_sample(9),
    "mlp_cross_entropy, ignored": mlp_cross_entropy_sample(9, targets="ignored", softcap=2.0),
    "mlp_cross_entropy, none": mlp_cross_entropy_sample(9, targets="ignored", reduction="none", softcap=2.0),
    "log_probs": log_probs_sample(9, 27),
    "log_probs, several": log_probs_sample(3, 4, 27, ids_per_row=2, ignored=True, **ALL_LOG_PROBS_OPTIONS),
    "linear_log_probs": linear_log_probs_sample(9),
    "linear_log_probs, several": linear_log_probs_sample((3, 4), ids_per_row=2, ignored=True, **ALL_LOG_PROBS_OPTIONS),
    "linear_log_probs, no bias": linear_log_probs_sample(9, 5, 300, bias=False),
    # As many rows as features: the logits fill the memory that they are kept in, and opcheck compares all of it.
    "linear_log_probs, few rows": linear_log_probs_sample(7, 7, 300, ids_per_row=2, ignored=True),
}
LARGE_SAMPLES = {
    "embedding_linear": embedding_linear_sample(4099, 3, 27, 10, 67, dtype=torch.float32),
    "embedding_linear, few rows": embedding_linear_sample(67, 3, 5003, 10, 67, dtype=torch.float32),
    "cross_entropy": cross_entropy_sample(4099, 27, dtype=torch.float32, targets="ignored", **ALL_LOSS_OPTIONS),
    "cross_entropy, large V": cross_entropy_sample(67, 5003, dtype=torch.float32),
    "cross_entropy, probabilities": cross_entropy_sample(515, 65, dtype=torch.float32, targets="probabilities"),
    "cross_entropy, token weights": cross_entropy_sample(
        4099, 27, dtype=torch.float32, targets="ignored", token_weighted=True
    ),
    "linear_cross_entropy": linear_cross_entropy_sample(4099, 16, 27, dtype=torch.float32, **ALL_LOSS_OPTIONS),
    "linear_cross_entropy, many rows, none": linear_cross_entropy_sample(
        4099, 16, 27, dtype=torch.float32, reduction="none"
    ),
    "linear_cross_entropy, large V": linear_cross_entropy_sample(67, 31, 5003, dtype=torch.float32),
    "linear_cross_entropy, few rows": linear_cross_entropy_sample(31, 67, 5003, dtype=torch.float32),
    "linear_cross_entropy, few rows, token weights": linear_cross_entropy_sample(
        31, 67, 5003, dtype=torch.float32, token_weighted=True
    ),
    "linear_cross_entropy, probabilities": linear_cross_entropy_sample(
        515, 16, 65, dtype=torch.float32, targets="probabilities"
    ),
    "mlp_cross_entropy": mlp_cross_entropy_sample(4099, 3, 27, 10, 67, dtype=torch.float32, targets="ignored"),
    "mlp_cross_entropy, large V": mlp_cross_entropy_sample(67, 3, 1003, 10, 67, dtype=torch.float32),
    "mlp_cross_entropy, many parameters": mlp_cross_entropy_sample(
        67, 3, 1003, 10, 257, dtype=torch.float32, targets="ignored"
    ),
    "mlp_cross_entropy, large V, none": mlp_cross_entropy_sample(
        67, 3, 1003, 10, 67, dtype=torch.float32, reduction="none"
    ),
    "log_probs": log_probs_sample(4099, 27, dtype=torch.float32, ids_per_row=2, ignored=True, **ALL_LOG_PROBS_OPTIONS),
    "log_probs, large V": log_probs_sample(67, 5003, dtype=torch.float32),
    "linear_log_probs": linear_log_probs_sample(4099, 16, 27, dtype=torch.float32, **ALL_LOG_PROBS_OPTIONS),
    "linear_log_probs, large V": linear_log_probs_sample(
        67, 31, 5003, dtype=torch.float32, ids_per_row=2, ignored=True
    ),
    "linear_log_probs, few rows": linear_log_probs_sample(31, 67, 5003, dtype=torch.float32),
}
# The engine's, which have no gradient: tests/test_engine.py and tests/test_population.py.
ENGINE_OPS = {
    "charlm::train_steps",
    "charlm::train_full_steps",
    "charlm::train_population",
    "charlm::train_full_population",
    "charlm::evaluate_full",
}
INNER_OPS = {"charlm::multiply_add"}  # which the others call
CPU_OPS = {"charlm::linear_log_probs_backward_"}
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
every_large_sample = pytest.mark.parametrize("sample", LARGE_SAMPLES.values(), ids=LARGE_SAMPLES)


def call(sample: Sample, leaves: dict[str, Tensor]) -> Tensor:
    return sample.call(getattr(ops, sample.op), leaves)


@every_sample
def test_backward_twice_gives_the_same_gradients(sample: Sample) -> None:
    leaves = sample.leaves()
    result = call(sample, leaves)
    first_upstream, second_upstream = normal(*result.shape, seed=1), normal(*result.shape, seed=2)

    def gradients(upstream: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, list(leaves.values()), upstream, retain_graph=True)

    first = gradients(first_upstream)
    copies = [gradient.clone() for gradient in first]
    gradients(second_upstream)
    again = gradients(first_upstream)
    assert all(map(same_bits, first, copies)), "a later backward changed the gradients of an earlier one"
    assert all(map(same_bits, again, copies))


@every_sample
def test_the_gradient_is_linear_in_the_upstream_gradient(sample: Sample) -> None:
    leaves = sample.leaves()
    result = call(sample, leaves)
    upstream = normal(*result.shape)

    def gradients(scale: float) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, list(leaves.values()), scale * upstream, retain_graph=True)

    for once, times, zero in zip(gradients(1.0), gradients(-2.5), gradients(0.0), strict=True):
        torch.testing.assert_close(times, -2.5 * once)
        assert torch.count_nonzero(zero) == 0


@pytest.mark.parametrize("name", ["linear_cross_entropy, mean", "mlp_cross_entropy, mean"])
def test_gradients_computed_in_forward_are_multiplied_where_they_are(name: str) -> None:
    sample = SAMPLES[name]
    leaves = sample.leaves()
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        result = call(sample, leaves)
    once = torch.autograd.grad(result, list(leaves.values()), retain_graph=True)
    assert not any(gradient.data_ptr() in kept for gradient in once)
    twice = torch.autograd.grad(result, list(leaves.values()), torch.full_like(result, 2.0))
    assert all(gradient.data_ptr() in kept for gradient in twice)
    assert all(same_bits(gradient, 2.0 * expected) for gradient, expected in zip(twice, once, strict=True))


@every_sample
def test_an_expanded_and_a_strided_upstream_gradient(sample: Sample) -> None:
    leaves = sample.leaves()
    result = call(sample, leaves)
    dense = normal(*result.shape)
    strided = torch.stack([dense, dense], -1)[..., 0]
    one = torch.ones((), dtype=result.dtype, device=device)
    for upstream, contiguous in ((strided, dense), (one.expand_as(result), torch.ones_like(result))):
        actual = torch.autograd.grad(result, list(leaves.values()), upstream, retain_graph=True)
        expected = torch.autograd.grad(result, list(leaves.values()), contiguous, retain_graph=True)
        assert all(map(same_bits, actual, expected))


@every_sample
def test_gradients_accumulate_in_grad(sample: Sample) -> None:
    leaves = sample.leaves()
    upstream = torch.ones_like(call(sample, leaves))
    expected = torch.autograd.grad(call(sample, leaves), list(leaves.values()), upstream)
    for _ in range(2):
        call(sample, leaves).backward(upstream)
    for leaf, gradient in zip(leaves.values(), expected, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, 2.0 * gradient, rtol=0.0, atol=0.0)


@every_sample
def test_only_what_requires_a_gradient_gets_one(sample: Sample) -> None:
    expected = evaluate(sample)
    names = sample.differentiable
    for chosen in itertools.chain.from_iterable(itertools.combinations(names, k) for k in range(1, len(names) + 1)):
        leaves = {name: sample.arguments[name].detach().requires_grad_(name in chosen) for name in names}
        result = call(sample, leaves)
        assert result.requires_grad
        result.backward(normal(*result.shape, seed=99))
        assert same_bits(result.detach(), expected["result"])
        for name, leaf in leaves.items():
            if name in chosen:
                assert leaf.grad is not None, f"{name} of {chosen} got no gradient"
                torch.testing.assert_close(leaf.grad, expected[f"gradient of {name}"], rtol=1e-14, atol=1e-15)
            else:
                assert leaf.grad is None, f"{name} got a gradient, only {chosen} required one"


@every_sample
def test_without_a_gradient(sample: Sample) -> None:
    expected = evaluate(sample)["result"]
    plain = call(sample, {})
    with torch.no_grad():
        no_grad = call(sample, sample.leaves())
    with torch.inference_mode():
        inference = call(sample, sample.leaves())
    for result in (plain, no_grad, inference):
        assert not result.requires_grad
        assert torch.equal(result, expected)


@every_sample
def test_changing_an_argument_before_backward_never_changes_the_gradients(sample: Sample) -> None:
    expected = evaluate(sample)
    inputs = sample.leaves()
    leaves = {name: value.clone() for name, value in inputs.items()}
    result = call(sample, leaves)
    with torch.no_grad():
        for value in leaves.values():
            value.add_(1.0)
    try:
        gradients = torch.autograd.grad(result, list(inputs.values()), normal(*result.shape, seed=99))
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017  either outcome is right
    else:
        for name, gradient in zip(inputs, gradients, strict=True):
            assert same_bits(gradient, expected[f"gradient of {name}"]), name


@every_large_sample
def test_the_same_bits_every_time_and_with_any_number_of_threads(
    sample: Sample, instruction_set: str, threads: None
) -> None:
    torch.set_num_threads(1)
    first = evaluate(sample)
    if not cases.on_cuda:
        torch.set_num_threads(2)
    for _ in range(2):
        again = evaluate(sample)
        for name, value in first.items():
            assert same_bits(again[name], value), name


@every_large_sample
def test_every_dtype_at_a_size_of_many_tiles(sample: Sample, instruction_set: str) -> None:
    for dtype in DTYPES:
        check(sample.to(dtype))


@dataclass(frozen=True)
class Call:
    """One call of a registered op, and the branch that the binding says it took."""

    op: torch._ops.OpOverload
    arguments: tuple[Any, ...]
    branch: str

    @property
    def name(self) -> str:
        return self.op.name().removeprefix("charlm::")


class Recorder(TorchDispatchMode):
    """Notes every call of a charlm op below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "charlm":
            arguments = tuple(value.detach() if isinstance(value, Tensor) else value for value in args)
            self.calls.append(Call(func, arguments, _C.last_branch()))
        return result


def calls_of(sample: Sample) -> list[Call]:
    with Recorder() as recorder:
        call(sample, {})
        evaluate(sample)
    return recorder.calls


@every_sample
def test_opcheck(sample: Sample) -> None:
    for recorded in calls_of(sample):
        torch.library.opcheck(recorded.op, recorded.arguments)
        torch.library.opcheck(recorded.op, tuple(map(in_float32, recorded.arguments)))


def in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def test_the_samples_call_every_registered_op() -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("charlm::")}
    called = {recorded.op.name() for sample in SAMPLES.values() for recorded in calls_of(sample)}
    assert called == registered - ENGINE_OPS - INNER_OPS - (CPU_OPS if cases.on_cuda else set())


def test_the_samples_reach_every_branch() -> None:
    bindings = Path(__file__).parents[1] / "csrc" / "bindings" / ("cuda" if cases.on_cuda else ".")
    source = "".join(path.read_text() for path in sorted(bindings.glob("*.cpp")))
    # Direct calls go past the recorder: tests/test_direct_calls.py.
    branches = set(re.findall(r'"(\w+_(?:forward|backward)/(?!direct)\w+)"', source))
    assert branches
    samples = [*SAMPLES.values(), *LARGE_SAMPLES.values()]
    reached = {recorded.branch for sample in samples for recorded in calls_of(sample)}
    assert branches <= reached
