"""What the op tests share: shapes, dtypes, tolerances, sample arguments, and the comparison with the truth.

The truth is `charlm.ops.reference` in float64 on the same numbers. A result may be as wrong as PyTorch is in the same
dtype, plus the entry of `TOLERANCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from charlm import ops
from charlm.ops import _direct, reference

# Where the tests of an op have their tensors; the truth is computed on the CPU. Set by pytest's option --device, before
# any test file is imported.
device = torch.device("cpu")
# Whether what is registered for CUDA runs there: on a GPU, or by the simulator on tensors of the CPU.
on_cuda = False

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGER_DTYPES = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
ACTIVATIONS = ("tanh", "relu", "gelu", "silu", "none")
REDUCTIONS = ("mean", "sum", "none")
TARGETS = ("indices", "ignored", "probabilities")

# What log_probs returns, with a gradient and without, and its options.
DIFFERENTIABLE_RESULTS = ("log_probs", "entropy", "logsumexp")
INTEGER_RESULTS = ("argmax", "rank")
ALL_LOG_PROBS_OPTIONS: dict[str, Any] = {"temperature": 0.7, "softcap": 5.0}
LOG_PROBS_OPTIONS: list[dict[str, Any]] = [{}, {"temperature": 2.5}, {"softcap": 2.0}, ALL_LOG_PROBS_OPTIONS]

# Every combination of the options of the two losses but `reduction`, and one in which all of them are at work.
LOSS_OPTIONS: list[dict[str, Any]] = [
    dict(zip(("token_weighted", "weighted", "label_smoothing", "softcap", "z_loss"), values, strict=True))
    for values in product([False, True], [False, True], [0.0, 0.3], [None, 2.0], [0.0, 0.05])
]
ALL_LOSS_OPTIONS: dict[str, Any] = {
    "token_weighted": True,
    "weighted": True,
    "label_smoothing": 0.1,
    "softcap": 5.0,
    "z_loss": 0.01,
}

# Allowed beyond PyTorch's own error, relative to the largest magnitude of the true tensor or of the terms that cancel
# in it. The two small types round the result itself, so theirs is one unit in the last place.
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}

# Widths around the vector registers (8 and 16 floats), one class, the 27 symbols of names, and one that is large.
VOCAB_SIZES = (1, 27, 28, 31, 32, 33, 65, 5003)

# (N, C)
LOGITS_SHAPES = (
    *((rows, vocab_size) for rows in (0, 1, 7) for vocab_size in VOCAB_SIZES),
    (4099, 27),
    (515, 65),
    (67, 5003),
)

# (N, T, V, D, H)
EMBEDDING_LINEAR_SHAPES = (
    *((7, context_length, 28, 3, 19) for context_length in range(1, 9)),
    *((33, 3, vocab_size, 5, 33) for vocab_size in VOCAB_SIZES),
    (0, 3, 27, 10, 200),
    (1, 1, 1, 1, 1),
    (1, 3, 27, 10, 200),
    (32, 3, 27, 10, 200),
    (4099, 3, 27, 10, 17),
    (515, 2, 65, 48, 65),
    (5, 3, 27, 0, 9),
    (61, 3, 27, 4, 0),
)

# (N, D, C)
LINEAR_CROSS_ENTROPY_SHAPES = (
    *((7, 5, vocab_size) for vocab_size in VOCAB_SIZES),
    *((rows, 33, 27) for rows in (0, 1, 515)),
    (5, 0, 27),
    (5, 1, 33),
    (31, 67, 5003),
    (67, 31, 5003),
    (1031, 16, 65),
)

# (N, D, C): more than 256 classes come a block at a time, and many rows a chunk at a time.
LINEAR_LOG_PROBS_SHAPES = (*LINEAR_CROSS_ENTROPY_SHAPES, (67, 9, 256), (67, 9, 257), (300, 3, 603), (3, 2, 12000))


@dataclass(frozen=True)
class Sample:
    """One call of an op: its name, its arguments by name, and which of them to differentiate."""

    op: str
    arguments: Mapping[str, Any]
    differentiable: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.arguments[self.differentiable[0]].dtype

    def term_size(self, name: str) -> float:
        """The size of the terms whose difference is the result or a gradient.

        A loss and its gradient, softmax minus target, can be 0 (one class, or a sure prediction) as a difference of
        numbers around 1, or 1/N under the mean, times the weight of the row.
        """
        if self.op.endswith("log_probs"):  # as many as there are ids
            return max(1.0, self.arguments["ids"].numel() / max(self.arguments["input"][..., :1].numel(), 1))
        if "target" not in self.arguments:
            return 0.0
        token_weights = self.arguments.get("token_weights")
        size = 1.0 if token_weights is None else max(1.0, _largest(token_weights))
        if name == "result" or self.arguments.get("reduction", "mean") != "mean":
            return size
        target = self.arguments["target"]
        class_dim = -1 if self.op == "linear_cross_entropy" else min(1, target.dim() - 1)
        classes = target.shape[class_dim] if target.is_floating_point() else 1
        return size / max(target.numel() // max(classes, 1), 1)

    def with_arguments(self, **changes: Any) -> Sample:
        return replace(self, arguments={**self.arguments, **changes})

    def to(self, dtype: torch.dtype) -> Sample:
        """The same numbers in another floating dtype."""
        return self.with_arguments(
            **{name: value.to(dtype) for name, value in self.arguments.items() if _is_floating(value)}
        )

    def on(self, device: str) -> Sample:
        """The same call on another device, with the same strides."""
        there = torch.device(device)
        moved = {name: _moved(value, there) for name, value in self.arguments.items() if isinstance(value, Tensor)}
        return self.with_arguments(**moved)

    def leaves(self) -> dict[str, Tensor]:
        """The differentiable arguments as leaves that require a gradient; the strides stay."""
        return {name: self.arguments[name].detach().requires_grad_() for name in self.differentiable}

    def call(self, function: Callable[..., Any], leaves: Mapping[str, Tensor]) -> Tensor:
        """The result; of several, those that can be differentiated as one tensor."""
        return self.results(function, leaves)["result"]

    def results(self, function: Callable[..., Any], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """That of `call`, and each of several results by its name."""
        found = function(**{**self.arguments, **leaves})
        if isinstance(found, Tensor):
            return {"result": found}
        return {"result": joined(found), **found._asdict()}


def joined(results: ops.LogProbs) -> Tensor:
    """Those of the results that can be differentiated, in one dimension."""
    with torch.autocast(device.type, enabled=False):  # which refuses to join some dtypes
        return torch.cat([value.reshape(-1) for value in (results.log_probs, results.entropy, results.logsumexp)])


def names_of(options: Mapping[str, Any]) -> str:
    """A test id: the names of the options that are at work."""
    return "+".join(name for name, value in options.items() if value) or "plain"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Standard normal numbers; the same ones, rounded, in every dtype and on every device."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(device, dtype)


def integers(high: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Uniform integers in [0, high); the same ones on every device."""
    return torch.randint(high, shape, generator=generator(seed)).to(device)


def embedding_linear_sample(
    rows: int | tuple[int, ...],
    context_length: int = 3,
    vocab_size: int = 27,
    embedding_dim: int = 4,
    hidden_dim: int = 9,
    *,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    activation: str = "tanh",
    seed: int = 0,
) -> Sample:
    leading = (rows,) if isinstance(rows, int) else rows
    fan_in = context_length * embedding_dim
    arguments = {
        "ids": integers(vocab_size, (*leading, context_length), seed),
        "embedding": normal(vocab_size, embedding_dim, dtype=dtype, seed=seed + 1),
        "weight": (normal(hidden_dim, fan_in, seed=seed + 2) / max(fan_in, 1) ** 0.5).to(dtype),
        "bias": normal(hidden_dim, dtype=dtype, seed=seed + 3) if bias else None,
        "activation": activation,
    }
    return Sample("embedding_linear", arguments, ("embedding", "weight", *(("bias",) if bias else ())))


def class_targets(
    kind: str,
    shape: tuple[int, ...],
    class_dim: int,
    *,
    dtype: torch.dtype,
    ignore_index: int = -100,
    seed: int = 0,
) -> Tensor:
    """Targets for logits of `shape`: "indices", indices of which every third is "ignored", or "probabilities"."""
    if kind == "probabilities":
        return normal(*shape, seed=seed).softmax(class_dim).to(dtype)
    rows = shape[:class_dim] + shape[class_dim + 1 :]
    target = integers(max(shape[class_dim], 1), rows, seed)
    if kind == "ignored":
        target.view(-1)[1::3] = ignore_index
    return target


def token_weights(rows: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Some of them negative and some 0, with a sum that is not near 0."""
    weights = 1.0 + 0.5 * normal(*rows, seed=seed)
    weights.view(-1)[2::5] = 0.0
    weights.view(-1)[3::7] = -0.5
    return weights.to(dtype)


def cross_entropy_sample(
    *shape: int,
    dtype: torch.dtype = torch.float64,
    targets: str = "indices",
    weighted: bool = False,
    token_weighted: bool = False,
    scale: float = 3.0,
    seed: int = 0,
    **options: Any,
) -> Sample:
    class_dim = 0 if len(shape) == 1 else 1
    rows = shape[:class_dim] + shape[class_dim + 1 :]
    arguments = {
        "input": (scale * normal(*shape, seed=seed)).to(dtype),
        "target": class_targets(
            targets, shape, class_dim, dtype=dtype, ignore_index=options.get("ignore_index", -100), seed=seed + 1
        ),
        "weight": _class_weights(shape[class_dim], dtype, seed + 2) if weighted else None,
        **options,
    }
    if token_weighted:  # which torch has none of
        arguments["token_weights"] = token_weights(rows, dtype, seed + 3)
    return Sample("cross_entropy", arguments, ("input", *(("target",) if targets == "probabilities" else ())))


def minus_infinity_sample(classes: int, *, dtype: torch.dtype, targets: str, label_smoothing: float) -> Sample:
    """Five rows of logits: of many, of all but the last, of the first, of all and of none of them minus infinity."""
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "reduction": "none"}
    sample = cross_entropy_sample(5, classes, dtype=dtype, targets=targets, **options)
    logits = sample.arguments["input"].clone()
    logits[0, 20:] = -torch.inf
    logits[1, : classes - 1] = -torch.inf
    logits[2, 0] = -torch.inf
    logits[3] = -torch.inf
    sample = sample.with_arguments(input=logits)
    if targets == "indices":
        sample = sample.with_arguments(target=torch.tensor([3, classes - 1, 0, 1, 2], device=device))
    return sample


def linear_cross_entropy_sample(
    rows: int | tuple[int, ...],
    in_features: int = 5,
    vocab_size: int = 27,
    *,
    dtype: torch.dtype = torch.float64,
    targets: str = "indices",
    weighted: bool = False,
    token_weighted: bool = False,
    bias: bool = True,
    seed: int = 0,
    **options: Any,
) -> Sample:
    leading = (rows,) if isinstance(rows, int) else rows
    logits_shape = (*leading, vocab_size)
    arguments = {
        "input": normal(*leading, in_features, dtype=dtype, seed=seed),
        "linear_weight": normal(vocab_size, in_features, dtype=dtype, seed=seed + 1),
        "target": class_targets(
            targets,
            logits_shape,
            len(leading),
            dtype=dtype,
            ignore_index=options.get("ignore_index", -100),
            seed=seed + 2,
        ),
        "linear_bias": normal(vocab_size, dtype=dtype, seed=seed + 3) if bias else None,
        "weight": _class_weights(vocab_size, dtype, seed + 4) if weighted else None,
        **options,
    }
    if token_weighted:
        arguments["token_weights"] = token_weights(leading, dtype, seed + 5)
    differentiable: tuple[str, ...] = ("input", "linear_weight")
    differentiable += ("linear_bias",) if bias else ()
    differentiable += ("target",) if targets == "probabilities" else ()
    return Sample("linear_cross_entropy", arguments, differentiable)


def mlp_cross_entropy_sample(
    rows: int | tuple[int, ...],
    context_length: int = 3,
    vocab_size: int = 27,
    embedding_dim: int = 4,
    hidden_dim: int = 9,
    *,
    dtype: torch.dtype = torch.float64,
    targets: str = "indices",
    bias: bool = True,
    seed: int = 0,
    **options: Any,
) -> Sample:
    leading = (rows,) if isinstance(rows, int) else rows
    fan_in = context_length * embedding_dim
    parameters = {
        "embedding": normal(vocab_size, embedding_dim, dtype=dtype, seed=seed + 2),
        "weight1": (normal(hidden_dim, fan_in, seed=seed + 3) / max(fan_in, 1) ** 0.5).to(dtype),
        "bias1": normal(hidden_dim, dtype=dtype, seed=seed + 4) if bias else None,
        "weight2": normal(vocab_size, hidden_dim, dtype=dtype, seed=seed + 5),
        "bias2": normal(vocab_size, dtype=dtype, seed=seed + 6) if bias else None,
    }
    arguments = {
        "ids": integers(vocab_size, (*leading, context_length), seed),
        "target": class_targets(
            targets,
            (*leading, vocab_size),
            len(leading),
            dtype=dtype,
            ignore_index=options.get("ignore_index", -100),
            seed=seed + 1,
        ),
        **parameters,
        **options,
    }
    differentiable = tuple(name for name, value in parameters.items() if value is not None)
    return Sample("mlp_cross_entropy", arguments, differentiable)


def chosen_ids(
    shape: tuple[int, ...], classes: int, *, ignored: bool = False, ignore_index: int = -100, seed: int = 0
) -> Tensor:
    """Random classes; every third or so is `ignored`, and so is all of the second row."""
    ids = integers(max(classes, 1), shape, seed)
    if ignored:
        ids = ids.masked_fill(integers(3, shape, seed + 1) == 0, ignore_index)
        if ids.dim() > 0:
            ids[1:2] = ignore_index
    return ids


def log_probs_sample(
    *shape: int,
    ids_per_row: int | None = None,
    dtype: torch.dtype = torch.float64,
    ignored: bool = False,
    scale: float = 3.0,
    seed: int = 0,
    **options: Any,
) -> Sample:
    """Logits of `shape`, and ids (...), or (..., K) for K `ids_per_row`."""
    several = () if ids_per_row is None else (ids_per_row,)
    ignore_index = options.get("ignore_index", -100)
    arguments = {
        "input": (scale * normal(*shape, seed=seed)).to(dtype),
        "ids": chosen_ids(
            (*shape[:-1], *several), shape[-1], ignored=ignored, ignore_index=ignore_index, seed=seed + 1
        ),
        **options,
    }
    return Sample("log_probs", arguments, ("input",))


def linear_log_probs_sample(
    rows: int | tuple[int, ...],
    in_features: int = 5,
    classes: int = 27,
    *,
    ids_per_row: int | None = None,
    dtype: torch.dtype = torch.float64,
    ignored: bool = False,
    bias: bool = True,
    seed: int = 0,
    **options: Any,
) -> Sample:
    leading = (rows,) if isinstance(rows, int) else rows
    several = () if ids_per_row is None else (ids_per_row,)
    ignore_index = options.get("ignore_index", -100)
    arguments = {
        "input": normal(*leading, in_features, dtype=dtype, seed=seed),
        "linear_weight": normal(classes, in_features, dtype=dtype, seed=seed + 1),
        "ids": chosen_ids((*leading, *several), classes, ignored=ignored, ignore_index=ignore_index, seed=seed + 2),
        "linear_bias": normal(classes, dtype=dtype, seed=seed + 3) if bias else None,
        **options,
    }
    return Sample("linear_log_probs", arguments, ("input", "linear_weight", *(("linear_bias",) if bias else ())))


def evaluate(sample: Sample, namespace: Any = ops, *, upstream_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The results of the op in `namespace` and the gradients for a random upstream gradient, by name."""
    leaves = sample.leaves()
    results = sample.results(getattr(namespace, sample.op), leaves)
    result = results["result"]
    upstream = normal(*result.shape, dtype=upstream_dtype or result.dtype, seed=99).to(result)
    gradients = torch.autograd.grad(result, list(leaves.values()), upstream)
    named = zip((f"gradient of {name}" for name in leaves), gradients, strict=True)
    return {**{name: value.detach() for name, value in results.items()}, **dict(named)}


def by_ops_alone() -> AbstractContextManager[Any]:
    """A context in which no call goes past the dispatcher, however small it is."""
    return mock.patch.object(_direct, "SMALL", -1)


def check(sample: Sample, namespace: Any = ops, *, truth: Any = reference) -> None:
    """Compare result and gradients of the op with the truth, and hold that the caller's tensors stay as they were.

    On the CPU also where no call is direct, as it may be where it is small.
    """
    before = {name: value.clone() for name, value in sample.arguments.items() if isinstance(value, Tensor)}
    found = [evaluate(sample, namespace)]
    if namespace is ops and not on_cuda:
        with by_ops_alone():
            found.append(evaluate(sample, namespace))
    for name, value in before.items():
        assert same_bits(sample.arguments[name], value), f"{sample.op} changed the caller's {name}"

    dtype = sample.dtype
    sample = sample.on("cpu")
    torchs = evaluate(sample, truth)
    true_values = evaluate(sample.to(torch.float64), truth, upstream_dtype=dtype)
    if sample.op == "linear_log_probs" and dtype != torch.float64:
        for name in INTEGER_RESULTS:  # which rounding of the logits may exchange
            del true_values[name]
    for name, true_value in true_values.items():
        if name in INTEGER_RESULTS:
            assert all(torch.equal(actual[name].cpu(), true_value) for actual in found), f"{sample.op}: {name}"
            continue
        tolerance = TOLERANCES[dtype] * max(_largest(true_value), sample.term_size(name))
        for actual in found:
            assert_as_good_as_torch(actual[name].cpu(), true_value, torchs[name], tolerance, f"{sample.op}: {name}")


def assert_as_good_as_torch(actual: Tensor, truth: Tensor, torchs: Tensor, tolerance: float, what: str) -> None:
    """`actual` is as near to `truth` as `torchs`, but for the tolerance; NaN and infinities sit where truth's do."""
    assert actual.shape == truth.shape, f"{what} has shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    assert actual.dtype == torchs.dtype, f"{what} has dtype {actual.dtype}, expected {torchs.dtype}"
    representable = truth.to(actual.dtype).double()
    finite = representable.isfinite()
    actual, torchs = actual.double(), torchs.double()
    torch.testing.assert_close(
        actual[~finite], representable[~finite], rtol=0.0, atol=0.0, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )
    if not finite.any():
        return
    actual, truth, torchs = actual[finite], truth[finite], torchs[finite]
    allowed = _largest(torchs - truth) + tolerance
    errors = (actual - truth).abs().nan_to_num(torch.inf)
    worst = int(errors.argmax())
    assert errors[worst] <= allowed, (
        f"{what}: {actual[worst].item()} instead of {truth[worst].item()}, "
        f"error {errors[worst].item():.3e}, allowed {allowed:.3e}"
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bytes, so that a NaN equals itself and 0.0 differs from -0.0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).contiguous().view(torch.uint8), b.reshape(-1).contiguous().view(torch.uint8))


def _largest(tensor: Tensor) -> float:
    """The largest finite magnitude, 0 where there is none."""
    magnitudes = tensor.abs().nan_to_num(0.0, 0.0)
    return magnitudes.max().item() if magnitudes.numel() > 0 else 0.0


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; `Tensor.to` would give a view with gaps other strides."""
    if tensor.device == device or tensor.numel() == 0:
        return tensor.to(device)
    elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.as_strided((elements,), (1,)).to(device)
    return memory.as_strided(tensor.shape, tensor.stride())


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _class_weights(vocab_size: int, dtype: torch.dtype, seed: int) -> Tensor:
    return (0.2 + torch.rand(vocab_size, generator=generator(seed), dtype=torch.float64)).to(device, dtype)
