"""linear_log_probs against the reference: any leading dimensions, blocks of classes, chunks of rows, bounded memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from cases import (
    ALL_LOG_PROBS_OPTIONS,
    DIFFERENTIABLE_RESULTS,
    DTYPES,
    INTEGER_DTYPES,
    LINEAR_LOG_PROBS_SHAPES,
    LOG_PROBS_OPTIONS,
    Sample,
    assert_as_good_as_torch,
    check,
    device,
    evaluate,
    integers,
    joined,
    linear_log_probs_sample,
    log_probs_sample,
    names_of,
    normal,
    same_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from peak_memory import peak_allocation
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from charlm import ops
from charlm.ops import reference
from charlm.ops._extension import _C

# (N, D, C) of one piece, of chunks of rows, of blocks of classes, and of both; and of rows that are few enough for
# forward on the CPU to keep their logits: of all in any dtype, and, in 16 bits, of some in the second.
KEPT = {"kept": (20, 67, 603), "kept in part": (50, 67, 603)}
PIECES = {"one": (7, 5, 27), "chunks": (515, 16, 65), "blocks": (67, 31, 603), "both": (300, 3, 603), **KEPT}
SUBSETS = [names for count in (1, 2, 3) for names in itertools.combinations(DIFFERENTIABLE_RESULTS, count)]
every_subset = pytest.mark.parametrize("names", SUBSETS, ids="+".join)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_piece = pytest.mark.parametrize("shape", PIECES.values(), ids=PIECES)


@every_dtype
@pytest.mark.parametrize("shape", LINEAR_LOG_PROBS_SHAPES)
def test_every_shape_in_every_dtype(shape: tuple[int, int, int], dtype: torch.dtype, instruction_set: str) -> None:
    check(linear_log_probs_sample(*shape, dtype=dtype))
    check(linear_log_probs_sample(*shape, dtype=dtype, ids_per_row=3, ignored=True, **ALL_LOG_PROBS_OPTIONS))


@pytest.mark.parametrize("ids_per_row", [None, 0, 1, 2, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", LOG_PROBS_OPTIONS, ids=names_of)
@every_piece
def test_any_number_of_ids(
    shape: tuple[int, int, int], options: dict[str, Any], bias: bool, ids_per_row: int | None
) -> None:
    for dtype in (torch.float64, torch.float32):
        check(
            linear_log_probs_sample(
                *shape, dtype=dtype, ids_per_row=ids_per_row, ignored=ids_per_row is not None, bias=bias, **options
            )
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("differentiable", [("input",), ("linear_weight",), ("linear_bias",)])
def test_a_large_weight_in_half_precision(differentiable: tuple[str, ...], dtype: torch.dtype) -> None:
    check(replace(linear_log_probs_sample(3, 520, 5003, dtype=dtype, ids_per_row=2), differentiable=differentiable))


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 5), (2, 0, 3)])
@pytest.mark.parametrize("ids_per_row", [None, 0, 1, 3])
def test_any_leading_dimensions(ids_per_row: int | None, leading: tuple[int, ...]) -> None:
    sample = linear_log_probs_sample(leading, ids_per_row=ids_per_row, ignored=True)
    check(sample)
    found = sample.results(ops.linear_log_probs, {})
    shapes = {name: found[name].shape for name in ops.LogProbs._fields}
    assert shapes.pop("log_probs") == sample.arguments["ids"].shape
    assert set(shapes.values()) == {torch.Size(leading)}


@pytest.mark.parametrize("ids_per_row", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1), id="transposed"),
        pytest.param(lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]], id="column slice"),
        pytest.param(lambda x: torch.stack([x, x], -1)[..., 1], id="stride two"),
        pytest.param(lambda x: torch.cat([x, x])[::2], id="row step"),
        pytest.param(lambda x: x[:1].expand_as(x), id="expanded rows"),
        pytest.param(lambda x: x[..., :1].expand_as(x), id="expanded columns"),
    ],
)
def test_any_strides(view: Callable[[Tensor], Tensor], dtype: torch.dtype, ids_per_row: int | None) -> None:
    for leading, classes in (((6,), 29), ((4, 3), 29), ((4,), 600)):
        sample = linear_log_probs_sample(leading, 5, classes, dtype=dtype, ids_per_row=ids_per_row)
        for name in ("input", "linear_weight", "ids"):
            check(sample.with_arguments(**{name: view(sample.arguments[name])}))
        bias = sample.arguments["linear_bias"]
        check(sample.with_arguments(linear_bias=torch.stack([bias, bias], 1)[:, 0]))
        check(sample.with_arguments(linear_bias=bias[:1].expand_as(bias)))


def test_hidden_states_of_all_but_the_last_position() -> None:
    sample = linear_log_probs_sample((2, 6), 5, 11)
    hidden, tokens = normal(2, 7, 5), integers(11, (2, 7))
    check(sample.with_arguments(input=hidden[:, :-1], ids=tokens[:, 1:]))


@pytest.mark.parametrize("integer", INTEGER_DTYPES)
def test_every_integer_dtype(integer: torch.dtype) -> None:
    sample = linear_log_probs_sample(9, ids_per_row=4, ignored=True, ignore_index=3)
    expected = evaluate(sample)
    actual = evaluate(sample.with_arguments(ids=sample.arguments["ids"].to(integer)))
    for name, value in expected.items():
        assert same_bits(actual[name], value), name


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 26, 27, 255, 2**63 - 1])
def test_any_ignore_index(ignore_index: int) -> None:
    for ids_per_row in (None, 3):
        check(linear_log_probs_sample(9, ids_per_row=ids_per_row, ignored=True, ignore_index=ignore_index))
    check(linear_log_probs_sample(9, 5, 600, ids_per_row=2, ignored=True, ignore_index=ignore_index))


# What counts.


@every_piece
@pytest.mark.parametrize("ids_per_row", [None, 1, 5])
def test_all_ids_ignored(ids_per_row: int | None, shape: tuple[int, int, int]) -> None:
    sample = linear_log_probs_sample(*shape, ids_per_row=ids_per_row)
    sample = sample.with_arguments(ids=torch.full_like(sample.arguments["ids"], -100))
    values = evaluate(sample)
    for name, value in values.items():
        assert (value == (-1 if name in cases.INTEGER_RESULTS else 0)).all(), name
    check(sample)


@every_dtype
@every_piece
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_ignored_changes_no_gradient(bad: float, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Whatever comes from upstream for it, and whatever its row of the input is."""
    sample = linear_log_probs_sample(*shape, dtype=dtype, ids_per_row=2)
    ids = sample.arguments["ids"].clone()
    ids[1] = ids[3, 0] = ids[4, 1] = -100
    sample = sample.with_arguments(ids=ids)

    def gradients(upstream_of_ignored: float, ignored_input: float, **options: Any) -> tuple[Tensor, ...]:
        input = sample.arguments["input"].clone()
        input[1] = ignored_input
        leaves = sample.with_arguments(input=input).leaves()
        found = ops.linear_log_probs(**{**sample.arguments, **leaves})
        upstream, of_rows = torch.ones_like(found.log_probs), torch.ones_like(found.entropy)
        upstream[ids == -100] = upstream_of_ignored
        of_rows[1] = upstream_of_ignored
        return torch.autograd.grad(found[:3], list(leaves.values()), (upstream, of_rows, of_rows), **options)

    # The product for the weight's gradient multiplies the input by 0, which is NaN where the input is no number.
    for expected, found in zip(gradients(1.0, 2.0), gradients(bad, 2.0), strict=True):
        assert same_bits(found, expected)
    of_input, *_ = gradients(bad, bad)
    assert torch.count_nonzero(of_input[1]) == 0
    assert of_input[[0, 2]].isfinite().all()


# argmax and rank.


@every_dtype
@every_piece
def test_the_most_probable_class_has_rank_zero(
    shape: tuple[int, int, int], dtype: torch.dtype, instruction_set: str
) -> None:
    """The logit that all are compared with is the very number that it is among them."""
    sample = linear_log_probs_sample(*shape, dtype=dtype)
    arguments = {**sample.arguments, "ids": ops.linear_log_probs(**sample.arguments).argmax}
    found = ops.linear_log_probs(**arguments)
    assert torch.equal(found.argmax, arguments["ids"])
    assert torch.count_nonzero(found.rank) == 0


@pytest.mark.cpu  # on a GPU products are of others
@every_dtype
@every_piece
def test_equal_classes_have_equal_ranks(shape: tuple[int, int, int], dtype: torch.dtype, instruction_set: str) -> None:
    """Equal rows of the weight make equal logits, wherever in the weight they are."""
    rows, features, classes = shape
    sample = linear_log_probs_sample(rows, features, classes, dtype=dtype)
    weight, bias = (sample.arguments[name][:1] for name in ("linear_weight", "linear_bias"))
    layer = {"linear_weight": weight.repeat(classes, 1), "linear_bias": bias.repeat(classes)}
    found = ops.linear_log_probs(**{**sample.arguments, **layer})
    assert torch.count_nonzero(found.rank) == 0
    assert torch.count_nonzero(found.argmax) == 0
    # One class is above all others: their ranks are 1.
    layer["linear_bias"][classes // 2] += 1.0
    ids = torch.arange(rows, device=device) % classes
    found = ops.linear_log_probs(**{**sample.arguments, **layer, "ids": ids})
    assert torch.equal(found.rank, (ids != classes // 2).long())
    assert (found.argmax == classes // 2).all()


@every_dtype
@every_piece
def test_rank_is_the_number_of_larger_log_probs(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    classes = shape[2]
    sample = linear_log_probs_sample(*shape, dtype=dtype, temperature=0.5)
    first = sample.arguments["ids"]
    ids = (first.unsqueeze(-1) + torch.arange(classes, device=device)) % classes
    found = ops.linear_log_probs(**{**sample.arguments, "ids": ids, "output_dtype": torch.float64})
    own = found.log_probs[:, :1]
    rounding = 0.0 if dtype == torch.float64 else 1e-5
    assert (found.rank >= (found.log_probs > own + rounding).sum(-1)).all()
    assert (found.rank <= (found.log_probs > own - rounding).sum(-1)).all()
    assert (
        found.log_probs.gather(-1, (found.argmax - first).unsqueeze(-1) % classes)
        >= found.log_probs.amax(-1, True) - rounding
    ).all()


# The edges of a softmax.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [27, 5003])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_logits_of_ten_thousand(softcap: float | None, classes: int, dtype: torch.dtype, instruction_set: str) -> None:
    sample = linear_log_probs_sample(7, 5, classes, dtype=dtype, ids_per_row=2, softcap=softcap)
    check(sample.with_arguments(input=1e4 * sample.arguments["input"]))


@pytest.mark.parametrize(
    ("classes", "removed"),
    [
        pytest.param(27, slice(20, None), id="the last"),
        pytest.param(27, slice(0, 20), id="the first"),
        pytest.param(600, slice(0, 270), id="the first block"),
        pytest.param(600, slice(256, 512), id="the second block"),
    ],
)
def test_minus_infinity_in_the_bias_removes_classes(classes: int, removed: slice) -> None:
    """A block of which none is left has sums of nothing."""
    sample = linear_log_probs_sample(7, 5, classes)
    bias = sample.arguments["linear_bias"].clone()
    bias[removed] = -torch.inf
    ids = torch.tensor([0, 1, 2, 3, 19, 20, classes - 1], device=device)
    removes = sample.with_arguments(linear_bias=bias, ids=ids)
    check(removes)
    found = ops.linear_log_probs(**removes.arguments)
    assert torch.equal(found.log_probs.isinf(), bias[ids].isinf())
    assert bias[found.argmax].isfinite().all()


@every_dtype
@every_piece
def test_nan_stays_in_its_row(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    sample = linear_log_probs_sample(*shape, dtype=dtype)
    features = sample.arguments["input"].clone()
    features[2, 1] = math.nan
    sample = sample.with_arguments(input=features)
    values = evaluate(sample)
    only_row_2 = [row == 2 for row in range(shape[0])]
    for name in DIFFERENTIABLE_RESULTS:
        assert values[name].isnan().tolist() == only_row_2, name
    assert values["argmax"][2] == 0
    assert values["rank"][2] == shape[2]
    assert values["gradient of input"].isnan().any(dim=1).tolist() == only_row_2
    check(sample)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("classes", "column"), [(27, 3), (600, 3), (600, 300), (600, 599)])
def test_a_class_that_is_no_number(classes: int, column: int, value: float) -> None:
    sample = linear_log_probs_sample(7, 5, classes, ids_per_row=2)
    bias = sample.arguments["linear_bias"].clone()
    bias[column] = value
    ids = sample.arguments["ids"].clone()
    ids[0, 0] = ids[1, 1] = column
    sample = replace(sample.with_arguments(linear_bias=bias, ids=ids), differentiable=("input", "linear_weight"))
    check(sample)
    check(sample.with_arguments(temperature=0.5, softcap=2.0))


@pytest.mark.parametrize("rows", [3, 67])
def test_long_rows_lose_no_digits(rows: int) -> None:
    classes = 100_003
    weight, bias = torch.zeros(classes, 2, device=device), torch.full((classes,), 0.55, device=device)
    bias[0] = 1.0  # exponentials of which no sum is exact
    arguments = (torch.ones(rows, 2, device=device), weight, integers(classes, (rows,)))
    found = ops.linear_log_probs(*arguments, linear_bias=bias)
    exact = reference.log_probs(bias.double().expand(rows, classes), arguments[2])
    for name in DIFFERENTIABLE_RESULTS:
        torch.testing.assert_close(getattr(found, name).double(), getattr(exact, name), rtol=2.0**-22, atol=0.0)


@pytest.mark.parametrize("ids_per_row", [None, 0, 3])
@pytest.mark.parametrize(
    ("rows", "features", "classes"), [(0, 3, 4), (5, 0, 4), (0, 0, 4), ((0, 2), 3, 4), (5, 0, 600)]
)
def test_no_rows_or_features(rows: Any, features: int, classes: int, ids_per_row: int | None) -> None:
    for options in LOG_PROBS_OPTIONS:
        check(linear_log_probs_sample(rows, features, classes, ids_per_row=ids_per_row, **options))


@pytest.mark.parametrize("ids_per_row", [0, 2])
@pytest.mark.parametrize(("rows", "features"), [(5, 3), (0, 3), (5, 0), (0, 0)])
def test_no_classes(rows: int, features: int, ids_per_row: int) -> None:
    sample = linear_log_probs_sample(rows, features, 0, ids_per_row=0)
    sample = sample.with_arguments(ids=torch.full((rows, ids_per_row), -100, device=device))
    check(sample)
    found = ops.linear_log_probs(**sample.arguments)
    assert found.logsumexp.tolist() == [0.0 if ids_per_row else -math.inf] * rows
    assert found.argmax.tolist() == found.rank.tolist() == [-1] * rows


@every_dtype
def test_one_class_is_certain(dtype: torch.dtype) -> None:
    values = evaluate(linear_log_probs_sample(103, 7, 1, dtype=dtype))
    for name in ("log_probs", "entropy", "argmax", "rank"):
        assert torch.count_nonzero(values[name]) == 0, name


# Derivatives.


def gradients_of(
    namespace: Any, names: tuple[str, ...], sample: Sample, upstream_dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The gradients by some of the results."""
    leaves = sample.leaves()
    found = namespace.linear_log_probs(**{**sample.arguments, **leaves})
    results = [getattr(found, name) for name in names]
    upstream = [
        normal(*value.shape, dtype=upstream_dtype or value.dtype, seed=DIFFERENTIABLE_RESULTS.index(name)).to(value)
        for name, value in zip(names, results, strict=True)
    ]
    return dict(zip(leaves, torch.autograd.grad(results, list(leaves.values()), upstream), strict=True))


@every_subset
@every_dtype
@every_piece
def test_gradients_of_some_results(shape: tuple[int, int, int], dtype: torch.dtype, names: tuple[str, ...]) -> None:
    for options in ({}, ALL_LOG_PROBS_OPTIONS):
        sample = linear_log_probs_sample(*shape, dtype=dtype, ids_per_row=2, ignored=True, **options)
        found, there = gradients_of(ops, names, sample), sample.on("cpu")
        truths = gradients_of(reference, names, there.to(torch.float64), dtype)
        torchs = gradients_of(reference, names, there)
        for name, truth in truths.items():
            # A GPU rounds logits and their gradients as torch does: of so many errors, either may have the largest.
            tolerance = (1 + cases.on_cuda) * cases.TOLERANCES[dtype] * max(float(truth.abs().max()), 1.0)
            assert_as_good_as_torch(found[name].cpu(), truth, torchs[name], tolerance, f"{names}: {name}")


@every_piece
def test_only_the_gradients_that_are_asked_for_are_computed(shape: tuple[int, int, int]) -> None:
    sample = linear_log_probs_sample(*shape)
    leaves = sample.leaves()
    results = ops.linear_log_probs(**{**sample.arguments, **leaves})
    expected = dict(
        zip(leaves, torch.autograd.grad(results.entropy.sum(), list(leaves.values()), retain_graph=True), strict=True)
    )
    asked = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.name().startswith("charlm::linear_log_probs_backward"):
                asked.append(list(args[-3:]))
            return result

    for name, leaf in leaves.items():
        with Record():
            (found,) = torch.autograd.grad(results.entropy.sum(), leaf, retain_graph=True)
        assert asked.pop() == [other == name for other in leaves]
        torch.testing.assert_close(found, expected[name], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("ids_per_row", [None, 0, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", LOG_PROBS_OPTIONS, ids=names_of)
def test_gradcheck(options: dict[str, Any], bias: bool, ids_per_row: int | None) -> None:
    sample = linear_log_probs_sample(3, 2, 4, ids_per_row=ids_per_row, ignored=True, bias=bias, **options)
    leaves = sample.leaves()

    def op(*values: Tensor) -> tuple[Tensor, ...]:
        return ops.linear_log_probs(**{**sample.arguments, **dict(zip(leaves, values, strict=True))})[:3]

    # In one direction on a GPU: the slow way is the same there, and a simulator takes minutes.
    assert torch.autograd.gradcheck(op, tuple(leaves.values()), fast_mode=cases.on_cuda)
    assert torch.autograd.gradgradcheck(op, tuple(leaves.values()), fast_mode=cases.on_cuda)


# Values.


def test_values_by_hand() -> None:
    features, weight = torch.tensor([[1.0, 2.0]], device=device), torch.eye(2, device=device)
    bias = torch.tensor([1.0 + math.log(3.0), 0.0], device=device)
    found = ops.linear_log_probs(features, weight, torch.tensor([[0, 1]], device=device), linear_bias=bias)
    assert found.log_probs.flatten().tolist() == pytest.approx([math.log(0.75), math.log(0.25)])
    assert found.entropy.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert found.logsumexp.item() == pytest.approx(2.0 + math.log(4.0))
    assert (found.argmax.item(), found.rank.item()) == (0, 0)


@every_piece
@every_dtype
def test_log_probs_are_the_losses_of_linear_cross_entropy(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    sample = linear_log_probs_sample(*shape, dtype=dtype, ignored=True, softcap=9.0, output_dtype=torch.float32)
    found = ops.linear_log_probs(**sample.arguments)
    arguments = dict(sample.arguments)
    target = arguments.pop("ids")
    losses = ops.linear_cross_entropy(**arguments, target=target, reduction="none")
    tolerance = 4 * torch.finfo(dtype).eps if cases.on_cuda and dtype.itemsize == 2 else 1e-5
    torch.testing.assert_close(found.log_probs, -losses, rtol=tolerance, atol=tolerance)


@every_piece
def test_the_results_are_those_of_log_probs_of_the_logits(shape: tuple[int, int, int]) -> None:
    sample = linear_log_probs_sample(*shape, ids_per_row=4, ignored=True)
    features, weight, bias = (sample.arguments[name] for name in ("input", "linear_weight", "linear_bias"))
    of_logits = log_probs_sample(shape[0], shape[2]).with_arguments(
        input=features @ weight.T + bias, ids=sample.arguments["ids"]
    )
    expected = of_logits.results(ops.log_probs, {})
    for name, value in sample.results(ops.linear_log_probs, {}).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def test_a_preference_loss_is_that_of_plain_pytorch() -> None:
    """DPO: sums of log-probabilities over positions, of chosen and rejected answers, through one layer."""
    hidden, weight = normal(2, 6, 5).requires_grad_(), normal(11, 5, seed=1).requires_grad_()
    tokens = integers(11, (2, 6))
    tokens[1, 4:] = -100

    def loss(log_probs: Tensor) -> Tensor:
        chosen, rejected = log_probs.sum(-1)
        return -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected))

    ours = loss(ops.linear_log_probs(hidden, weight, tokens).log_probs)
    every = (hidden @ weight.T).log_softmax(-1)
    picked = every.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(tokens == -100, 0.0)
    expected = loss(picked)
    torch.testing.assert_close(ours, expected)
    leaves = [hidden, weight]
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(expected, leaves))


def test_results_own_their_memory() -> None:
    features, weight, ids = normal(4, 3), normal(5, 3), torch.tensor([0, 1, 2, 3], device=device)
    results = ops.linear_log_probs(features, weight, ids)
    expected = [value.clone() for value in results]
    features.zero_()
    weight.zero_()
    ids.zero_()
    assert all(map(same_bits, results, expected))


@every_dtype
@pytest.mark.parametrize("output_dtype", [None, *DTYPES])
def test_the_results_have_the_dtype_that_was_asked_for(output_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    sample = linear_log_probs_sample(9, dtype=dtype, ids_per_row=2, output_dtype=output_dtype)
    for namespace in (ops, reference):
        found = sample.results(namespace.linear_log_probs, {})
        assert all(found[name].dtype == (output_dtype or dtype) for name in DIFFERENTIABLE_RESULTS)
        assert found["argmax"].dtype == found["rank"].dtype == torch.int64
    check(sample)


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_lower_precision(dtype: torch.dtype, lower: torch.dtype) -> None:
    sample = linear_log_probs_sample(9, dtype=dtype)
    with torch.autocast(device.type, dtype=lower):
        found = sample.results(ops.linear_log_probs, {})
    expected = sample.to(lower).with_arguments(output_dtype=torch.float32).results(ops.linear_log_probs, {})
    assert all(same_bits(found[name], value) for name, value in expected.items())


# Memory and threads.


def test_the_logits_are_never_in_memory() -> None:
    """Forward and backward allocate the gradients, a few numbers per row, and a small part of the logits' memory."""
    rows, classes, part = (2**15, 33, 1 / 16) if cases.on_cuda else (2048, 5003, 1 / 20)
    sample = linear_log_probs_sample(rows, 8, classes, dtype=torch.float32, ids_per_row=2)
    leaves = sample.leaves()
    peak = peak_allocation(lambda: joined(ops.linear_log_probs(**{**sample.arguments, **leaves})).sum().backward())
    gradients = sum(leaf.numel() for leaf in leaves.values())
    assert peak < 4 * (gradients + 40 * rows + part * rows * classes)


@pytest.mark.cpu
def test_evaluation_holds_a_part_of_the_logits() -> None:
    rows, classes = 2048, 5003
    sample = linear_log_probs_sample(rows, 8, classes, dtype=torch.float32)
    peak = peak_allocation(lambda: ops.linear_log_probs(**sample.arguments))
    assert peak < 4 * (30 * rows + rows * classes / 20)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4099, 16, 65), (1500, 64, 2003), (67, 31, 5003)], ids=str)
def test_the_same_bits_with_any_number_of_threads(
    shape: tuple[int, int, int], dtype: torch.dtype, threads: None
) -> None:
    sample = linear_log_probs_sample(*shape, dtype=dtype, ids_per_row=3, ignored=True, **ALL_LOG_PROBS_OPTIONS)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(evaluate(sample))
    for name, value in found[0].items():
        assert same_bits(found[1][name], value), name


# Logits that are kept.


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("shape", "keeps"),
    [
        ((20, 67, 603), True),
        ((16, 64, 30), True),  # the fewest rows of so many features
        ((64, 64, 30), True),  # the most
        ((15, 64, 30), False),
        ((65, 64, 30), False),
        ((0, 0, 30), False),
        ((4, 4, 0), False),
    ],
    ids=str,
)
def test_logits_are_kept_where_the_gradient_of_the_weight_has_room_and_is_wanted(
    shape: tuple[int, int, int], keeps: bool
) -> None:
    sample = linear_log_probs_sample(*shape, ignored=shape[2] > 0, ids_per_row=None if shape[2] > 0 else 0)
    for frozen in (False, True):
        leaves = sample.leaves()
        leaves["linear_weight"].requires_grad_(not frozen)
        found = ops.linear_log_probs(**{**sample.arguments, **leaves})
        was_kept = _C.last_branch() == "linear_log_probs_forward/keeps_logits" and shape[2] > 0
        assert was_kept == (keeps and not frozen)
        found.entropy.sum().backward()
        assert _C.last_branch() == f"linear_log_probs_backward/{'kept_logits' if was_kept else 'pieces'}"
    ops.linear_log_probs(**sample.arguments)
    assert _C.last_branch() == "linear_log_probs_forward/pieces"


@pytest.mark.cpu
@every_dtype
@pytest.mark.parametrize("shape", KEPT.values(), ids=KEPT)
def test_kept_logits_outlast_a_backward_of_a_graph_that_is_kept(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    sample = linear_log_probs_sample(*shape, dtype=dtype, ids_per_row=2, softcap=9.0)
    leaves = sample.leaves()
    total = joined(ops.linear_log_probs(**{**sample.arguments, **leaves})).sum()
    tensors = list(leaves.values())
    first, second = (torch.autograd.grad(total, tensors, retain_graph=True) for _ in range(2))
    last = torch.autograd.grad(total, tensors)
    for of_first, of_second, of_last in zip(first, second, last, strict=True):
        assert same_bits(of_first, of_second)
        assert same_bits(of_first, of_last)


@pytest.mark.cpu
@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_logits_take_no_memory_beyond_the_gradient(dtype: torch.dtype, rows: int) -> None:
    features, classes = 128, 5003
    sample = linear_log_probs_sample(rows, features, classes, dtype=dtype)
    leaves = sample.leaves()
    peak = peak_allocation(lambda: joined(ops.linear_log_probs(**{**sample.arguments, **leaves})).sum().backward())
    gradients = dtype.itemsize * sum(leaf.numel() for leaf in leaves.values())
    part = 4 * 256 * (rows + (features if dtype.itemsize == 2 else 0))  # a block of logits, and of sums to be rounded
    assert _C.last_branch() == "linear_log_probs_backward/kept_logits"
    assert peak < gradients + part + 4 * (40 * rows + 2 * rows * features + 3 * classes)


@settings(max_examples=100)
@given(data=st.data())
def test_any_shape_dtype_layout_and_options(data: st.DataObject) -> None:
    sample = linear_log_probs_sample(
        data.draw(st.integers(0, 90), "rows"),
        data.draw(st.integers(1, 40), "in_features"),
        data.draw(st.one_of(st.integers(1, 70), st.integers(250, 600)), "C"),
        ids_per_row=data.draw(st.sampled_from([None, 0, 1, 2, 5]), "K"),
        dtype=data.draw(st.sampled_from(DTYPES), "dtype"),
        ignored=data.draw(st.booleans(), "ignored"),
        bias=data.draw(st.booleans(), "bias"),
        seed=data.draw(st.integers(0, 1000), "seed"),
        temperature=data.draw(st.sampled_from([1.0, 0.3, 10.0]), "temperature"),
        softcap=data.draw(st.sampled_from([None, 0.5, 30.0]), "softcap"),
    )
    for name in data.draw(st.sets(st.sampled_from(["input", "linear_weight"])), "transposed"):
        sample = sample.with_arguments(**{name: sample.arguments[name].t().contiguous().t()})
    check(sample)


@pytest.mark.cpu
@every_piece
@pytest.mark.parametrize("value", ["classes", -1, 2**40, -(2**63)])
def test_an_id_out_of_range_is_named(value: Any, shape: tuple[int, int, int]) -> None:
    value = shape[2] if value == "classes" else value
    sample = linear_log_probs_sample(*shape, ids_per_row=3)
    ids = sample.arguments["ids"].clone()
    ids[5, 1] = value
    for leaves in ({}, sample.leaves()):
        with pytest.raises(IndexError, match=rf"ids\[5, 1\] = {value} is out of range for {shape[2]} classes"):
            ops.linear_log_probs(**{**sample.arguments, **leaves, "ids": ids})
