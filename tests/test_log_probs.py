"""log_probs against the reference: any number of ids a row, every layout, each result alone, the edges of a softmax."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import (
    ALL_LOG_PROBS_OPTIONS,
    DIFFERENTIABLE_RESULTS,
    DTYPES,
    INTEGER_DTYPES,
    LOG_PROBS_OPTIONS,
    LOGITS_SHAPES,
    Sample,
    assert_as_good_as_torch,
    check,
    device,
    evaluate,
    integers,
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

from charlm import ops
from charlm.ops import reference

SUBSETS = [names for count in (1, 2, 3) for names in itertools.combinations(DIFFERENTIABLE_RESULTS, count)]
every_subset = pytest.mark.parametrize("names", SUBSETS, ids="+".join)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@every_dtype
@pytest.mark.parametrize("shape", LOGITS_SHAPES)
def test_every_shape_in_every_dtype(shape: tuple[int, ...], dtype: torch.dtype, instruction_set: str) -> None:
    check(log_probs_sample(*shape, dtype=dtype))
    check(log_probs_sample(*shape, dtype=dtype, ids_per_row=3, ignored=True, **ALL_LOG_PROBS_OPTIONS))


@every_dtype
@pytest.mark.parametrize("options", [{}, ALL_LOG_PROBS_OPTIONS], ids=names_of)
def test_few_rows_of_many_classes(options: dict[str, Any], dtype: torch.dtype) -> None:
    check(log_probs_sample(3, 40009, dtype=dtype, ids_per_row=2, ignored=True, **options))


@pytest.mark.parametrize("ids_per_row", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("classes", [1, 5, 27, 1003])
@pytest.mark.parametrize("options", LOG_PROBS_OPTIONS, ids=names_of)
def test_any_number_of_ids(options: dict[str, Any], classes: int, ids_per_row: int, instruction_set: str) -> None:
    for dtype in (torch.float64, torch.float32):
        check(log_probs_sample(9, classes, dtype=dtype, ids_per_row=ids_per_row, **options))
        check(log_probs_sample(9, classes, dtype=dtype, ids_per_row=ids_per_row, ignored=True, **options))


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 5), (2, 0, 3), (2, 3, 2, 2)])
@pytest.mark.parametrize("ids_per_row", [None, 0, 1, 3])
def test_any_leading_dimensions(ids_per_row: int | None, leading: tuple[int, ...]) -> None:
    sample = log_probs_sample(*leading, 5, ids_per_row=ids_per_row, ignored=True)
    check(sample)
    found = sample.results(ops.log_probs, {})
    shapes = {name: found[name].shape for name in ops.LogProbs._fields}
    assert shapes.pop("log_probs") == sample.arguments["ids"].shape
    assert set(shapes.values()) == {torch.Size(leading)}


@pytest.mark.parametrize("ids_per_row", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1), id="transposed"),
        pytest.param(lambda x: torch.cat([x, x], -1)[..., 3 : 3 + x.shape[-1]], id="class slice"),
        pytest.param(lambda x: torch.cat([x, x], -2)[..., : x.shape[-2], :], id="slice of positions"),
        pytest.param(lambda x: torch.stack([x, x], -1)[..., 1], id="stride two"),
        pytest.param(lambda x: torch.cat([x, x])[::2], id="row step"),
        pytest.param(lambda x: x.movedim(0, -2).contiguous().movedim(-2, 0), id="positions first"),
        pytest.param(lambda x: x[:1].expand_as(x), id="expanded rows"),
        pytest.param(lambda x: x[..., :1].expand_as(x), id="expanded classes"),
    ],
)
def test_any_strides(view: Callable[[Tensor], Tensor], dtype: torch.dtype, ids_per_row: int | None) -> None:
    for leading in ((6,), (4, 3), (2, 3, 4)):
        sample = log_probs_sample(*leading, 29, dtype=dtype, ids_per_row=ids_per_row)
        viewed = view(sample.arguments["input"])
        assert viewed.shape == sample.arguments["input"].shape
        check(sample.with_arguments(input=viewed))
        ids = sample.arguments["ids"]
        check(sample.with_arguments(input=viewed, ids=torch.stack([ids, ids], -1)[..., 0]))
        check(sample.with_arguments(ids=ids[:1].expand_as(ids)))


def test_logits_of_all_but_the_last_position() -> None:
    """With the bits of a copy on the CPU; on CUDA sums begin where vectors of 16 bytes do."""
    logits, tokens = normal(2, 7, 11), integers(11, (2, 7))
    sample = log_probs_sample(2, 6, 11).with_arguments(input=logits[:, :-1], ids=tokens[:, 1:])
    check(sample)
    shifted = evaluate(sample)
    copied = evaluate(sample.with_arguments(input=logits[:, :-1].contiguous(), ids=tokens[:, 1:].contiguous()))
    for name, value in copied.items():
        torch.testing.assert_close(shifted[name], value)
        assert cases.on_cuda or same_bits(shifted[name], value), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [62, 63, 64, 65, 127, 128, 129])
def test_copied_rows_around_the_size_of_a_tile(rows: int, dtype: torch.dtype, instruction_set: str) -> None:
    for classes in (27, 65, 4097):
        sample = log_probs_sample(rows if classes < 4096 else rows - 60, classes, dtype=dtype, ids_per_row=2)
        check(sample.with_arguments(input=sample.arguments["input"].t().contiguous().t()))


@pytest.mark.parametrize("integer", INTEGER_DTYPES)
def test_every_integer_dtype(integer: torch.dtype) -> None:
    sample = log_probs_sample(9, 27, ids_per_row=4, ignored=True, ignore_index=3)
    expected = evaluate(sample)
    actual = evaluate(sample.with_arguments(ids=sample.arguments["ids"].to(integer)))
    for name, value in expected.items():
        assert same_bits(actual[name], value), name


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 26, 27, 255, -(2**40), 2**63 - 1])
def test_any_ignore_index(ignore_index: int) -> None:
    for ids_per_row in (None, 3):
        check(log_probs_sample(9, 27, ids_per_row=ids_per_row, ignored=True, ignore_index=ignore_index))


def test_ignore_index_255_of_unsigned_bytes() -> None:
    sample = log_probs_sample(9, 27, ignored=True, ignore_index=255)
    check(sample.with_arguments(ids=sample.arguments["ids"].to(torch.uint8)))


@pytest.mark.parametrize("integer", INTEGER_DTYPES[4:])
def test_unsigned_ids_are_not_ignored(integer: torch.dtype) -> None:
    """As bytes, 156 and -100 are the same."""
    ids = torch.tensor([156, 255, 100], device=device).to(integer)
    for ignore_index in (-100, -1, 2**40 + 156):
        sample = log_probs_sample(3, 300, ignore_index=ignore_index).with_arguments(ids=ids)
        check(sample)
        assert (ops.log_probs(**sample.arguments).log_probs < 0.0).all()


# What counts.


def test_a_row_counts_where_one_of_its_ids_does() -> None:
    logits = normal(4, 5)
    ids = torch.tensor([[1, 2], [-100, 3], [4, -100], [-100, -100]], device=device)
    found = ops.log_probs(logits, ids)
    every = logits.log_softmax(-1)
    expected = [[every[0, 1], every[0, 2]], [0.0, every[1, 3]], [every[2, 4], 0.0], [0.0, 0.0]]
    torch.testing.assert_close(found.log_probs, torch.tensor(expected, dtype=torch.float64, device=device))
    entropy = -(every.exp() * every).sum(-1)
    torch.testing.assert_close(found.entropy, torch.cat([entropy[:3], entropy.new_zeros(1)]))
    torch.testing.assert_close(found.logsumexp, torch.cat([logits.logsumexp(-1)[:3], entropy.new_zeros(1)]))
    assert found.argmax.tolist() == [*logits[:3].argmax(-1).tolist(), -1]
    ranks = [int((row > row[y]).sum()) for row, y in zip(logits, [1, 0, 4], strict=False)]
    assert found.rank.tolist() == [ranks[0], -1, ranks[2], -1]


@every_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_ignored_has_gradient_zero_whatever_comes_from_upstream(bad: float, dtype: torch.dtype) -> None:
    sample = log_probs_sample(6, 27, dtype=dtype, ids_per_row=2)
    ids = sample.arguments["ids"].clone()
    ids[1] = ids[3, 0] = ids[4, 1] = -100
    logits = sample.arguments["input"].clone()
    logits[1] = bad  # no number in a row that does not count
    for namespace in (ops, reference):
        leaf = logits.clone().requires_grad_()
        found = namespace.log_probs(leaf, ids)
        upstream = torch.ones_like(found.log_probs)
        upstream[ids == -100] = bad
        of_rows = torch.ones_like(found.entropy)
        of_rows[1] = bad
        for options in ({"retain_graph": True}, {"create_graph": True}, {}):
            (gradient,) = torch.autograd.grad(found[:3], leaf, (upstream, of_rows, of_rows), **options)
            assert gradient.isfinite().all()
            assert torch.count_nonzero(gradient[1]) == 0


@every_dtype
@pytest.mark.parametrize("ids_per_row", [None, 1, 5])
def test_all_ids_ignored(ids_per_row: int | None, dtype: torch.dtype) -> None:
    sample = log_probs_sample(6, 27, dtype=dtype, ids_per_row=ids_per_row)
    sample = sample.with_arguments(ids=torch.full_like(sample.arguments["ids"], -100))
    values = evaluate(sample)
    assert torch.count_nonzero(values["result"]) == 0
    assert torch.count_nonzero(values["gradient of input"]) == 0
    assert (values["argmax"] == -1).all()
    assert (values["rank"] == -1).all()
    check(sample)


def test_rows_without_ids_count() -> None:
    logits = normal(4, 5)
    found = ops.log_probs(logits, torch.zeros(4, 0, dtype=torch.int64, device=device))
    assert found.log_probs.shape == (4, 0)
    torch.testing.assert_close(found.logsumexp, logits.logsumexp(-1))
    torch.testing.assert_close(found.entropy, torch.distributions.Categorical(logits=logits).entropy())
    assert torch.equal(found.argmax, logits.argmax(-1))
    assert (found.rank == -1).all()


# argmax and rank.


@every_dtype
def test_ties_are_the_first_class_and_no_higher_rank(dtype: torch.dtype, instruction_set: str) -> None:
    for classes in (5, 40, 1003):
        logits = torch.zeros(classes, classes, dtype=dtype, device=device)
        logits.fill_diagonal_(1.0)
        logits[:, classes // 2] = 1.0
        ids = torch.arange(classes, device=device)
        found = ops.log_probs(logits, ids)
        assert found.argmax.tolist() == [min(n, classes // 2) for n in range(classes)]
        assert torch.equal(found.rank, torch.zeros_like(ids))
        others = ops.log_probs(logits, (ids + 1) % classes)
        expected = [0 if (n + 1) % classes == classes // 2 else 1 + (n != classes // 2) for n in range(classes)]
        assert others.rank.tolist() == expected
        equal = ops.log_probs(torch.full_like(logits, 3.0), ids)
        assert torch.equal(equal.argmax, torch.zeros_like(ids))
        assert torch.equal(equal.rank, torch.zeros_like(ids))


@pytest.mark.parametrize("options", LOG_PROBS_OPTIONS, ids=names_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_options_move_no_class(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Also where the soft cap has made equal numbers of different logits."""
    sample = log_probs_sample(50, 203, dtype=dtype, scale=20.0)
    plain, found = (s.results(ops.log_probs, {}) for s in (sample, sample.with_arguments(**options)))
    assert torch.equal(found["argmax"], plain["argmax"])
    assert torch.equal(found["rank"], plain["rank"])


def test_rank_zero_is_where_the_id_is_predicted() -> None:
    logits, target = normal(200, 7), integers(7, (200,))
    rank = ops.log_probs(logits, target).rank
    assert torch.equal(rank == 0, logits.argmax(-1) == target)
    assert torch.equal(rank < 3, (logits.topk(3).indices == target.unsqueeze(-1)).any(-1))


# The edges of a softmax.


@every_dtype
@pytest.mark.parametrize("shape", [(7, 27), (3, 5003)])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"softcap": 30.0}], ids=names_of)
def test_logits_of_ten_thousand(
    options: dict[str, Any], shape: tuple[int, int], dtype: torch.dtype, instruction_set: str
) -> None:
    logits = torch.full(shape, -1e4, dtype=dtype, device=device)
    logits[0] = 1e4
    logits[1, 3] = 1e4
    logits[2, ::2] = 1e4
    sample = log_probs_sample(*shape, dtype=dtype, ids_per_row=2, **options)
    check(sample.with_arguments(input=logits))
    check(log_probs_sample(*shape, dtype=dtype, scale=1e4, **options))
    if not options:
        found = ops.log_probs(logits, torch.full((shape[0],), 3, device=device))
        half = math.log((shape[1] + 1) // 2)
        rounding = float(torch.finfo(dtype).eps)
        assert found.log_probs[:3].tolist() == pytest.approx([-math.log(shape[1]), 0.0, -2e4 - half], rel=rounding)
        assert found.entropy[:3].tolist() == pytest.approx([math.log(shape[1]), 0.0, half], rel=rounding)


@every_dtype
@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_logits_that_all_lie_far_from_zero(offset: float, dtype: torch.dtype, instruction_set: str) -> None:
    """An offset common to a row changes nothing but the rounding of the logits, and logsumexp."""
    sample = log_probs_sample(7, 27, ids_per_row=2, dtype=dtype)
    logits = (sample.arguments["input"].double() + offset).to(dtype)
    shifted, exact = (
        evaluate(sample.with_arguments(input=logits)),
        evaluate(sample.with_arguments(input=logits - offset)),
    )
    for name in ("log_probs", "entropy", "gradient of input"):
        torch.testing.assert_close(shifted[name], exact[name], rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(shifted["logsumexp"], exact["logsumexp"] + offset)
    if dtype != torch.float64:  # where the reference is not exact either
        check(sample.with_arguments(input=logits))


@every_dtype
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"softcap": 3.0}], ids=names_of)
@pytest.mark.parametrize("classes", [37, 1003])
def test_minus_infinity_logits(classes: int, options: dict[str, Any], dtype: torch.dtype, instruction_set: str) -> None:
    """Of many, of all but the last, of the first, of all and of none of the classes."""
    sample = log_probs_sample(5, classes, dtype=dtype, ids_per_row=2, **options)
    logits = sample.arguments["input"].clone()
    logits[0, 20:] = -torch.inf
    logits[1, : classes - 1] = -torch.inf
    logits[2, 0] = -torch.inf
    logits[3] = -torch.inf
    ids = torch.tensor([[3, 20], [classes - 1, 0], [0, 1], [1, 2], [2, 2]], device=device)
    sample = sample.with_arguments(input=logits, ids=ids)
    check(sample)
    if "softcap" not in options:
        found = ops.log_probs(**sample.arguments)
        assert found.log_probs.isinf().tolist()[:3] == [[False, True], [False, True], [True, False]]
        assert found.entropy.isfinite().tolist() == [True, True, True, False, True]
        assert found.entropy[1] == 0.0
        assert found.logsumexp[3] == -torch.inf
        assert found.rank.tolist()[1:4] == [0, classes - 1, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_dtype
@pytest.mark.parametrize(("classes", "column"), [(37, 0), (37, 17), (37, 36), (1003, 700)])
def test_nan_and_infinity_stay_in_their_row(
    classes: int, column: int, dtype: torch.dtype, bad: float, instruction_set: str
) -> None:
    sample = log_probs_sample(5, classes, dtype=dtype)
    logits = sample.arguments["input"].clone()
    logits[2, column] = bad
    sample = sample.with_arguments(input=logits)
    values = evaluate(sample)
    only_row_2 = [row == 2 for row in range(5)]
    assert values["log_probs"].isnan().tolist() == only_row_2
    assert values["entropy"].isnan().tolist() == only_row_2
    assert values["gradient of input"].isnan().any(dim=1).tolist() == only_row_2
    check(sample)


@every_dtype
@pytest.mark.parametrize("classes", [3, 37, 1003])
def test_argmax_and_rank_of_what_is_no_number(classes: int, dtype: torch.dtype, instruction_set: str) -> None:
    """The largest number is the prediction; a class that is NaN is above every id, and all are above one that is."""
    logits = normal(4, classes, dtype=dtype)
    logits[1] = math.nan
    logits[2, : classes - 1] = math.nan
    logits[3, 1] = math.nan
    ids = torch.tensor([0, 0, classes - 1, 1], device=device)
    sample = log_probs_sample(4, classes, dtype=dtype).with_arguments(input=logits, ids=ids)
    check(sample)
    found = sample.results(ops.log_probs, {})
    assert found["argmax"].tolist()[1:3] == [0, classes - 1]
    assert found["rank"].tolist()[1:] == [classes, classes - 1, classes]


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("classes", [27, 100])
def test_nan_is_nan_whatever_its_other_bits(classes: int, softcap: float | None, instruction_set: str) -> None:
    sample = log_probs_sample(20, classes, dtype=torch.float32, softcap=softcap)
    logits = sample.arguments["input"].clone()
    logits[2, 5] = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32)
    values = evaluate(sample.with_arguments(input=logits))
    only_row_2 = [row == 2 for row in range(20)]
    for name in DIFFERENTIABLE_RESULTS:
        assert values[name].isnan().tolist() == only_row_2, name
    assert values["gradient of input"].isnan().any(dim=1).tolist() == only_row_2


@pytest.mark.parametrize("classes", [8192, 50257, 262144])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "softcap": 30.0}], ids=names_of)
def test_long_rows_lose_no_digits(classes: int, options: dict[str, Any], instruction_set: str) -> None:
    inexact = torch.full((1, classes), 0.55, device=device)  # exponentials that are equal, and of which no sum is exact
    inexact[0, 0] = 1.0
    for logits in (torch.full_like(inexact, 0.3), inexact, normal(1, classes, dtype=torch.float32)):
        ids = torch.tensor([classes - 1], device=device)
        found = ops.log_probs(logits, ids, **options)
        exact = reference.log_probs(logits.double(), ids, **options)
        for name in DIFFERENTIABLE_RESULTS:
            torch.testing.assert_close(getattr(found, name).double(), getattr(exact, name), rtol=2.0**-22, atol=0.0)


@pytest.mark.parametrize("ids_per_row", [None, 0, 3])
@pytest.mark.parametrize("shape", [(0, 27), (0, 27, 4), (3, 0, 27)])
def test_no_rows(shape: tuple[int, ...], ids_per_row: int | None) -> None:
    sample = log_probs_sample(*shape, ids_per_row=ids_per_row)
    check(sample)
    assert evaluate(sample)["gradient of input"].shape == shape


@pytest.mark.parametrize("ids_per_row", [0, 3])
@every_dtype
def test_no_classes(dtype: torch.dtype, ids_per_row: int) -> None:
    ids = torch.full((5, ids_per_row), -100, device=device)
    sample = log_probs_sample(5, 0, dtype=dtype, ids_per_row=0).with_arguments(ids=ids)
    check(sample)
    found = ops.log_probs(**sample.arguments)
    assert found.logsumexp.tolist() == [0.0 if ids_per_row else -math.inf] * 5
    assert found.entropy.tolist() == [0.0] * 5
    assert found.argmax.tolist() == found.rank.tolist() == [-1] * 5


@pytest.mark.parametrize("value", [0.0, 9.0, math.inf, -math.inf, math.nan])
def test_one_class_is_certain(value: float) -> None:
    sample = log_probs_sample(3, 1, ids_per_row=2).with_arguments(
        input=torch.full((3, 1), value, dtype=torch.float64, device=device)
    )
    check(sample)
    if math.isfinite(value):
        found = ops.log_probs(**sample.arguments)
        assert torch.count_nonzero(found.log_probs) == torch.count_nonzero(found.entropy) == 0


# Derivatives.


def gradient_of(
    namespace: Any, names: tuple[str, ...], sample: Sample, upstream_dtype: torch.dtype | None = None
) -> Tensor:
    """The gradient of the input by some of the results."""
    leaf = sample.leaves()["input"]
    found = getattr(namespace, sample.op)(**{**sample.arguments, "input": leaf})
    results = [getattr(found, name) for name in names]
    upstream = [
        normal(*value.shape, dtype=upstream_dtype or value.dtype, seed=DIFFERENTIABLE_RESULTS.index(name)).to(value)
        for name, value in zip(names, results, strict=True)
    ]
    return torch.autograd.grad(results, leaf, upstream)[0]


@every_subset
@every_dtype
@pytest.mark.parametrize("options", [{}, ALL_LOG_PROBS_OPTIONS], ids=names_of)
def test_gradients_of_some_results(options: dict[str, Any], dtype: torch.dtype, names: tuple[str, ...]) -> None:
    for ids_per_row in (None, 3):
        sample = log_probs_sample(9, 29, dtype=dtype, ids_per_row=ids_per_row, ignored=True, **options)
        there = sample.on("cpu")
        truth = gradient_of(reference, names, there.to(torch.float64), dtype)
        torchs = gradient_of(reference, names, there)
        tolerance = cases.TOLERANCES[dtype] * max(float(truth.abs().max()), 1.0)
        assert_as_good_as_torch(gradient_of(ops, names, sample).cpu(), truth, torchs, tolerance, "+".join(names))


@every_subset
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradients_of_some_results_where_others_are_no_number(value: float, names: tuple[str, ...]) -> None:
    sample = log_probs_sample(4, 9)
    logits = sample.arguments["input"].clone()
    logits[1, 3] = value
    sample = sample.with_arguments(input=logits, ids=torch.tensor([0, 3, 4, 8], device=device))
    found, expected = gradient_of(ops, names, sample).cpu(), gradient_of(reference, names, sample.on("cpu"))
    assert found[[0, 2, 3]].isfinite().all()
    if value == math.inf:  # of which no softmax is a number; that of logsumexp would be, but for this class
        assert found[1].isnan().all()
        found[1] = expected[1]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14, equal_nan=True)


@every_subset
@pytest.mark.parametrize("op", ["log_probs", "linear_log_probs"])
def test_second_derivatives_and_mapped_gradients_of_some_results(op: str, names: tuple[str, ...]) -> None:
    sample = log_probs_sample(4, 5, ids_per_row=2, ignored=True, **ALL_LOG_PROBS_OPTIONS)
    if op == "linear_log_probs":
        sample = linear_log_probs_sample(4, 3, 5, ids_per_row=2, ignored=True, **ALL_LOG_PROBS_OPTIONS)

    def derivatives(namespace: Any) -> list[Tensor]:
        leaves = sample.leaves()
        found = getattr(namespace, op)(**{**sample.arguments, **leaves})
        results, inputs = [getattr(found, name) for name in names], list(leaves.values())
        several = [normal(3, *value.shape, seed=n) for n, value in enumerate(results)]
        mapped = torch.autograd.grad(results, inputs, several, is_grads_batched=True, retain_graph=True)
        first = torch.autograd.grad(results, inputs, [value[0] for value in several], create_graph=True)
        return [*mapped, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs, materialize_grads=True)]

    torch.testing.assert_close(derivatives(ops), derivatives(reference), rtol=1e-11, atol=1e-13)


def test_results_without_a_gradient() -> None:
    found = log_probs_sample(4, 5).leaves()["input"]
    results = ops.log_probs(found, integers(5, (4,)))
    assert not results.argmax.requires_grad
    assert not results.rank.requires_grad
    assert all(getattr(results, name).requires_grad for name in DIFFERENTIABLE_RESULTS)


@pytest.mark.parametrize("ids_per_row", [None, 0, 3])
@pytest.mark.parametrize("options", LOG_PROBS_OPTIONS, ids=names_of)
def test_gradcheck(options: dict[str, Any], ids_per_row: int | None) -> None:
    sample = log_probs_sample(4, 3, ids_per_row=ids_per_row, ignored=True, scale=1.0, **options)
    leaves = sample.leaves()

    def op(*values: Tensor) -> tuple[Tensor, ...]:
        found = ops.log_probs(**{**sample.arguments, **dict(zip(leaves, values, strict=True))})
        return found[:3]

    # In one direction on a GPU: the slow way is the same there, and a simulator takes minutes.
    assert torch.autograd.gradcheck(op, tuple(leaves.values()), fast_mode=cases.on_cuda)
    assert torch.autograd.gradgradcheck(op, tuple(leaves.values()), fast_mode=cases.on_cuda)


# Values.


def test_values_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]], dtype=torch.float64, device=device)
    found = ops.log_probs(logits, torch.tensor([[0, 1], [1, 1]], device=device))
    quarter, half = math.log(0.25), math.log(0.5)
    assert found.log_probs.flatten().tolist() == pytest.approx([quarter, math.log(0.75), half, half])
    assert found.entropy.tolist() == pytest.approx([-0.25 * quarter - 0.75 * math.log(0.75), -half])
    assert found.logsumexp.tolist() == pytest.approx([math.log(4.0), 2.0 - half])
    assert found.argmax.tolist() == [1, 0]
    assert found.rank.tolist() == [1, 0]


def test_temperature_divides_what_the_softcap_leaves() -> None:
    logits, ids = 4.0 * normal(6, 5), integers(5, (6,))
    plain = ops.log_probs(2.0 * torch.tanh(logits / 2.0) / 0.25, ids)
    found = ops.log_probs(logits, ids, softcap=2.0, temperature=0.25)
    torch.testing.assert_close(found[:3], plain[:3])
    assert torch.equal(found.argmax, plain.argmax)


@every_dtype
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_log_probs_are_the_losses_of_cross_entropy(softcap: float | None, dtype: torch.dtype) -> None:
    logits, target = normal(50, 27, dtype=dtype), integers(27, (50,))
    target[::7] = -100
    losses = ops.cross_entropy(logits, target, reduction="none", softcap=softcap, output_dtype=torch.float32)
    found = ops.log_probs(logits, target, softcap=softcap, output_dtype=torch.float32)
    torch.testing.assert_close(found.log_probs, -losses, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(found.log_probs.exp(), (-losses).exp(), rtol=1e-5, atol=1e-6)


def test_a_policy_gradient_is_that_of_plain_pytorch() -> None:
    """The ratio, the penalty and the entropy of PPO, from one call."""
    actions, advantage = integers(9, (5, 7)), normal(5, 7, seed=1)
    leaf = normal(5, 7, 9).requires_grad_()
    old = normal(5, 7, seed=2) - 3.0

    def objective(log_probs: Tensor, entropy: Tensor) -> Tensor:
        ratio = (log_probs - old).exp()
        return torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean() + 0.1 * entropy.mean()

    found = ops.log_probs(leaf, actions)
    ours = objective(found.log_probs, found.entropy)
    policy = torch.distributions.Categorical(logits=leaf)
    expected = objective(policy.log_prob(actions), policy.entropy())
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, leaf), torch.autograd.grad(expected, leaf))


@every_dtype
@pytest.mark.parametrize("output_dtype", [None, *DTYPES])
def test_the_results_have_the_dtype_that_was_asked_for(output_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    sample = log_probs_sample(9, 27, dtype=dtype, ids_per_row=2, output_dtype=output_dtype)
    for namespace in (ops, reference):
        found = sample.results(namespace.log_probs, {})
        assert all(found[name].dtype == (output_dtype or dtype) for name in DIFFERENTIABLE_RESULTS)
        assert found["argmax"].dtype == found["rank"].dtype == torch.int64
    check(sample)


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@every_dtype
def test_autocast_has_float32_results(dtype: torch.dtype, lower: torch.dtype) -> None:
    sample = log_probs_sample(9, 27, dtype=dtype)
    with torch.autocast(device.type, dtype=lower):
        found = sample.results(ops.log_probs, {})
        rounded = sample.with_arguments(output_dtype=torch.bfloat16).results(ops.log_probs, {})
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = sample.with_arguments(output_dtype=wide).results(ops.log_probs, {})
    assert all(same_bits(found[name], value) for name, value in expected.items())
    assert all(rounded[name].dtype == torch.bfloat16 for name in DIFFERENTIABLE_RESULTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_results_of_half_precision_through_transforms(dtype: torch.dtype) -> None:
    sample = log_probs_sample(3, 4, 27, dtype=dtype, output_dtype=torch.float32)
    logits, ids = sample.arguments["input"], sample.arguments["ids"]
    expected = ops.log_probs(logits, ids, output_dtype=torch.float32)
    found = torch.vmap(lambda x, y: ops.log_probs(x, y, output_dtype=torch.float32))(logits, ids)
    torch.testing.assert_close(tuple(found), tuple(expected))
    one_by_one = torch.func.grad(lambda x: ops.log_probs(x, ids, output_dtype=torch.float32).entropy.sum())(logits)
    (gradient,) = torch.autograd.grad(ops.log_probs(leaf := logits.clone().requires_grad_(), ids).entropy.sum(), leaf)
    torch.testing.assert_close(one_by_one, gradient)


@settings(max_examples=120)
@given(data=st.data())
def test_any_shape_dtype_layout_and_options(data: st.DataObject) -> None:
    leading = tuple(data.draw(st.lists(st.integers(0, 7), max_size=3), "leading"))
    sample = log_probs_sample(
        *leading,
        data.draw(st.integers(1, 70), "C"),
        ids_per_row=data.draw(st.sampled_from([None, 0, 1, 2, 5]), "K"),
        dtype=data.draw(st.sampled_from(DTYPES), "dtype"),
        ignored=data.draw(st.booleans(), "ignored"),
        scale=data.draw(st.sampled_from([0.1, 3.0, 100.0]), "scale"),
        seed=data.draw(st.integers(0, 1000), "seed"),
        temperature=data.draw(st.sampled_from([1.0, 0.3, 10.0]), "temperature"),
        softcap=data.draw(st.sampled_from([None, 0.5, 30.0]), "softcap"),
    )
    order = data.draw(st.permutations(range(1 + len(leading))), "memory order")
    inverse = sorted(range(len(order)), key=order.__getitem__)
    check(sample.with_arguments(input=sample.arguments["input"].permute(order).contiguous().permute(inverse)))


# The CPU alone.


@pytest.mark.cpu
@pytest.mark.parametrize("value", [27, -1, 2**40, -(2**63), 2**63 - 1])
def test_an_id_out_of_range_is_named(value: int) -> None:
    logits = normal(2, 3, 27)
    for shape, place, named in (((2, 3), (1, 2), "1, 2"), ((2, 3, 4), (1, 0, 3), "1, 0, 3")):
        ids = integers(27, shape)
        ids[place] = value
        for leaf in (logits, logits.clone().requires_grad_()):
            with pytest.raises(IndexError, match=rf"ids\[{named}\] = {value} is out of range for 27 classes"):
                ops.log_probs(leaf, ids)


@pytest.mark.cpu
def test_more_classes_than_a_transform_can_number() -> None:
    """In float32, as which it has argmax and rank for a while."""
    logits = torch.zeros(1, 1, 1).expand(2, 1, 2**24 + 1)
    ids = torch.zeros(2, 1, dtype=torch.int64)
    assert ops.log_probs(logits, ids).rank.tolist() == [[0], [0]]
    with pytest.raises(ValueError, match=r"transforms take at most 16777216 classes in torch\.float32, got 16777217"):
        torch.vmap(ops.log_probs)(logits, ids)


@pytest.mark.cpu
def test_nothing_as_large_as_the_logits_is_allocated_but_their_gradient() -> None:
    rows, classes = 500, 1003
    logits, ids = normal(rows, classes, dtype=torch.float32), integers(classes, (rows,))
    assert peak_allocation(lambda: ops.log_probs(logits, ids)) < 4 * 40 * rows
    leaf = logits.requires_grad_()
    peak = peak_allocation(lambda: cases.joined(ops.log_probs(leaf, ids)).sum().backward())
    assert peak < 4 * (rows * classes + 60 * rows)


@pytest.mark.vast
def test_more_than_2_to_31_elements() -> None:
    """Rows share memory here."""
    rows, classes = 2**15 + 1, 2**16
    row = normal(1, classes, dtype=torch.float32, seed=8)
    ids = torch.full((rows,), 3, device=device)
    ids[-1] = classes - 1
    found = ops.log_probs(row.expand(rows, classes), ids)
    expected = ops.log_probs(row.expand(2, classes), ids[-2:])
    for value, other in zip(found, expected, strict=True):
        assert same_bits(value, torch.cat([other[:1].expand(rows - 1), other[1:]]))


def test_offsets_beyond_2_to_31_elements() -> None:
    """Rows so far apart that memory in between is never touched."""
    stride, classes = 2**30 + 5, 11
    memory = torch.empty(2 * stride + classes, dtype=torch.bfloat16, device=device)
    logits = memory.as_strided((3, classes), (stride, 1))
    logits.copy_(normal(3, classes, dtype=torch.bfloat16, seed=9))
    ids = torch.tensor([1, 0, 7], device=device)
    assert all(map(same_bits, ops.log_probs(logits, ids), ops.log_probs(logits.clone(), ids)))


@pytest.mark.cpu
def test_threads_have_memory_of_their_own(threads: None) -> None:
    """Of classes that do not lie side by side each has copies, for long enough to be in the middle of one."""
    logits = normal(5003, 1000, dtype=torch.float32).t().requires_grad_()
    ids = integers(5003, (1000, 2))
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results = ops.log_probs(logits, ids)
        total = cases.joined(results).sum()
        found.append([*results, *torch.autograd.grad(total, logits)])
    assert all(same_bits(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 27), (5, 600)], ids=str)
def test_a_gradient_in_half_precision_is_rounded_to_the_nearest(
    shape: tuple[int, ...], dtype: torch.dtype, instruction_set: str
) -> None:
    logits, ids = normal(*shape, dtype=dtype), integers(shape[1], (shape[0],))

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(ops.log_probs(x, ids, output_dtype=torch.float32).log_probs.sum(), x)[0]

    exact = gradient(logits.float()).double()
    half_unit = torch.finfo(dtype).eps / 2
    assert ((gradient(logits).double() - exact).abs() <= 1.01 * half_unit * exact.abs() + 1e-7).all()


def test_results_are_those_of_log_softmax() -> None:
    """Of PyTorch's own functions, not of the reference."""
    logits, ids = normal(9, 27), integers(27, (9, 4))
    found = ops.log_probs(logits, ids)
    torch.testing.assert_close(found.log_probs, F.log_softmax(logits, -1).gather(-1, ids))
    torch.testing.assert_close(found.entropy, torch.special.entr(logits.softmax(-1)).sum(-1))
