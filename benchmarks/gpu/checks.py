"""Calls of the ops on small numbers, and whether they compute what the reference does in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import measure
from charlm import ops
from charlm.ops import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Allowed, relative to the largest number of the true tensor. The two small types round the result itself.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
_BYTE_OF_NAN = 255  # nothing but these is a NaN in every floating dtype
_POISONED_BYTES = tuple(1 << power for power in range(9, 25))
_POISONED_BLOCKS = 4  # of each size


@dataclass(frozen=True)
class Call:
    """A call of an op: its name, its arguments by name, and which of them to differentiate."""

    op: str
    arguments: Mapping[str, Any]
    differentiable: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.arguments[self.differentiable[0]].dtype
        return dtype

    def changed(self, change: Callable[[Tensor], Tensor]) -> Call:
        """With every tensor changed."""
        arguments = {name: change(value) if isinstance(value, Tensor) else value for name, value in self.tensors()}
        return replace(self, arguments={**self.arguments, **arguments})

    def in_float64(self) -> Call:
        return self.changed(lambda value: value.double() if value.is_floating_point() else value)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return [(name, value) for name, value in self.arguments.items() if isinstance(value, Tensor)]

    def leaves(self) -> dict[str, Tensor]:
        """The differentiable arguments as leaves that require a gradient, in the memory that they have."""
        return {name: self.arguments[name].detach().requires_grad_() for name in self.differentiable}


def evaluate(call: Call, namespace: Any = ops) -> dict[str, Tensor]:
    """The results, and gradients for upstream gradients that are the same for the same shape, by name."""
    leaves = call.leaves()
    results = differentiable_results(getattr(namespace, call.op)(**{**call.arguments, **leaves}))
    # Made of what can be captured in a graph: 1, 0.5, 1, 0.5 and so on, which every dtype has exactly.
    upstream = [torch.ones_like(result) for result in results.values()]
    for gradient in upstream:
        gradient.view(-1)[1::2].fill_(0.5)
    gradients = torch.autograd.grad(list(results.values()), list(leaves.values()), upstream)
    return {
        **{name: result.detach() for name, result in results.items()},
        **{f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)},
    }


def differentiable_results(result: Tensor | ops.LogProbs) -> dict[str, Tensor]:
    """What an op returns, by name, but for what has no gradient."""
    return {"result": result} if isinstance(result, Tensor) else dict(islice(result._asdict().items(), 3))


def truth(call: Call) -> dict[str, Tensor]:
    """What the reference computes in float64."""
    return evaluate(call.in_float64(), reference)


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype) -> float:
    """The largest difference of a tensor, relative to the largest number in it.

    Raises:
        ValueError: a tensor has another shape or dtype, has NaN or infinities, or differs by more than is allowed.
    """
    largest = 0.0
    for name, wanted in expected.items():
        own = found[name]
        if own.shape != wanted.shape or own.dtype != dtype:
            raise ValueError(f"{name} is {own.dtype} {tuple(own.shape)}, expected {dtype} {tuple(wanted.shape)}")
        if not own.numel():
            continue
        errors = (own.double() - wanted).abs() / wanted.abs().max().clamp_min(torch.finfo(dtype).tiny)
        error = errors.max().item()
        if not error <= TOLERANCES[dtype]:  # NaN is not
            worst = int(errors.nan_to_num(torch.inf).argmax())
            values = f"{own.reshape(-1)[worst].item():.6g} instead of {wanted.reshape(-1)[worst].item():.6g}"
            raise ValueError(f"{name}: {values} at {worst} of {own.numel()}, allowed {TOLERANCES[dtype]:.1e}")
        largest = max(largest, error)
    return largest


def same_bits(found: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless all tensors hold the same bytes."""
    for name, first in found.items():
        a, b = (tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (first, again[name]))
        if not torch.equal(a, b):
            raise ValueError(f"{name}: {int((a != b).sum())} of {len(a)} bytes differ in a second call")


def poison(tensors: Iterable[Tensor] = ()) -> None:
    """Leaves NaN in what the allocator gives out next: for tensors like these, and for others of up to 8 MB."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors] + list(_POISONED_BYTES)
    blocks = [
        torch.full((size,), _BYTE_OF_NAN, dtype=torch.uint8, device=measure.DEVICE)
        for size in sizes
        for _ in range(_POISONED_BLOCKS)
    ]
    del blocks


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Standard normal numbers; the same ones, rounded, in every dtype and on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(measure.DEVICE, dtype)


def integers(high: int, *shape: int, seed: int) -> Tensor:
    """Uniform integers in [0, high)."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).to(measure.DEVICE)


def cross_entropy(rows: int, classes: int, dtype: torch.dtype, seed: int = 0, **options: Any) -> Call:
    arguments = {"input": 3 * normal(rows, classes, dtype=dtype, seed=seed), "target": _targets(classes, rows, seed)}
    return Call("cross_entropy", {**arguments, **_options(options, rows, classes, dtype)}, ("input",))


def embedding_linear(sizes: Sequence[int], dtype: torch.dtype, seed: int = 0, **options: Any) -> Call:
    """Of N rows, T positions, V tokens, D and H."""
    rows, context_length, vocab_size, embedding_dim, hidden_dim = sizes
    fan_in = context_length * embedding_dim
    arguments = {
        "ids": integers(vocab_size, rows, context_length, seed=seed),
        "embedding": normal(vocab_size, embedding_dim, dtype=dtype, seed=seed + 1),
        "weight": normal(hidden_dim, fan_in, dtype=dtype, seed=seed + 2) / fan_in**0.5,
        "bias": normal(hidden_dim, dtype=dtype, seed=seed + 3),
    }
    return Call("embedding_linear", {**arguments, **options}, ("embedding", "weight", "bias"))


def linear_cross_entropy(
    rows: int, features: int, classes: int, dtype: torch.dtype, seed: int = 0, **options: Any
) -> Call:
    arguments = {
        "input": normal(rows, features, dtype=dtype, seed=seed),
        "linear_weight": normal(classes, features, dtype=dtype, seed=seed + 1) / features**0.5,
        "target": _targets(classes, rows, seed),
        "linear_bias": normal(classes, dtype=dtype, seed=seed + 2),
    }
    differentiable = ("input", "linear_weight", "linear_bias")
    return Call("linear_cross_entropy", {**arguments, **_options(options, rows, classes, dtype)}, differentiable)


def log_probs(
    rows: int, classes: int, dtype: torch.dtype, seed: int = 0, ids_per_row: int | None = None, **options: Any
) -> Call:
    arguments = {
        "input": 3 * normal(rows, classes, dtype=dtype, seed=seed),
        "ids": _targets(classes, rows, seed, *(() if ids_per_row is None else (ids_per_row,))),
    }
    return Call("log_probs", {**arguments, **options}, ("input",))


def linear_log_probs(
    rows: int,
    features: int,
    classes: int,
    dtype: torch.dtype,
    seed: int = 0,
    ids_per_row: int | None = None,
    **options: Any,
) -> Call:
    arguments = {
        "input": normal(rows, features, dtype=dtype, seed=seed),
        "linear_weight": normal(classes, features, dtype=dtype, seed=seed + 1) / features**0.5,
        "ids": _targets(classes, rows, seed, *(() if ids_per_row is None else (ids_per_row,))),
        "linear_bias": normal(classes, dtype=dtype, seed=seed + 2),
    }
    return Call("linear_log_probs", {**arguments, **options}, ("input", "linear_weight", "linear_bias"))


def mlp_cross_entropy(sizes: Sequence[int], dtype: torch.dtype, seed: int = 0, **options: Any) -> Call:
    """Of N rows, T positions, V tokens, D and H."""
    rows, context_length, vocab_size, embedding_dim, hidden_dim = sizes
    fan_in = context_length * embedding_dim
    parameters = {
        "embedding": normal(vocab_size, embedding_dim, dtype=dtype, seed=seed + 1),
        "weight1": normal(hidden_dim, fan_in, dtype=dtype, seed=seed + 2) / fan_in**0.5,
        "bias1": normal(hidden_dim, dtype=dtype, seed=seed + 3),
        "weight2": normal(vocab_size, hidden_dim, dtype=dtype, seed=seed + 4) / hidden_dim**0.5,
        "bias2": normal(vocab_size, dtype=dtype, seed=seed + 5),
    }
    tokens = {"ids": integers(vocab_size, rows, context_length, seed=seed), "target": _targets(vocab_size, rows, seed)}
    return Call("mlp_cross_entropy", {**tokens, **parameters, **options}, tuple(parameters))


def _targets(classes: int, rows: int, seed: int, *shape: int) -> Tensor:
    """Of which those of every fifth row are ignored."""
    target = integers(classes, rows, *shape, seed=seed + 9)
    target[4::5] = -100
    return target


def _options(options: Mapping[str, Any], rows: int, classes: int, dtype: torch.dtype) -> dict[str, Any]:
    """`weighted=True` as class weights, and `token_weighted=True` as weights of rows."""
    chosen = dict(options)
    if chosen.pop("weighted", False):
        chosen["weight"] = (normal(classes, dtype=torch.float32, seed=99).abs() + 0.2).to(dtype)
    if chosen.pop("token_weighted", False):
        chosen["token_weights"] = (normal(rows, dtype=torch.float32, seed=98) + 1.0).to(dtype)
    return chosen
