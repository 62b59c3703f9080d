"""vocab_parallel_linear_log_probs on 3 and 2 ranks, with uneven slices, against the op on the whole weight.

The ranks are on the CPU; a process alone is also where --device says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import (
    ALL_LOG_PROBS_OPTIONS,
    DTYPES,
    INTEGER_RESULTS,
    TOLERANCES,
    Sample,
    _largest,
    assert_as_good_as_torch,
    check,
    device,
    evaluate,
    integers,
    linear_log_probs_sample,
    names_of,
    normal,
)
from processes import run_once
from torch import Tensor
from vocab_parallel_runs import SLICES, Watch, assembled, own_part

from charlm import ops
from charlm.distributed import vocab_parallel_linear_log_probs
from charlm.ops import reference

PARALLEL = SimpleNamespace(linear_log_probs=vocab_parallel_linear_log_probs)
DIFFERENTIABLE = ("log_probs", "entropy", "logsumexp")


def options_cases() -> dict[str, Sample]:
    """Every combination of options and numbers of ids, with and without a bias, in float64 and in several chunks."""
    return {
        f"{ids_per_row} ids, {names_of(options)}, {'bias' if bias else 'no bias'}": linear_log_probs_sample(
            131, 5, 29, ids_per_row=ids_per_row, ignored=True, bias=bias, **options
        )
        for ids_per_row in (None, 0, 1, 3)
        for options in ({}, {"temperature": 0.7}, {"softcap": 2.0}, ALL_LOG_PROBS_OPTIONS)
        for bias in (True, False)
    }


def exact_cases() -> dict[str, Sample]:
    """Whole numbers, which no product rounds: many are equal, on several ranks, and of bfloat16 few others exist."""
    cases = {}
    for dtype in DTYPES:
        sample = linear_log_probs_sample(131, 5, 29, dtype=dtype, ids_per_row=2)
        rounded = {name: sample.arguments[name].round() for name in ("input", "linear_weight", "linear_bias")}
        cases[f"{dtype}, whole numbers"] = sample.with_arguments(**rounded)
    return cases


def pair_cases() -> dict[str, Sample]:
    """For the group of two."""
    return {
        f"{ids_per_row} ids": linear_log_probs_sample(
            70, 5, 29, ids_per_row=ids_per_row, ignored=True, **ALL_LOG_PROBS_OPTIONS
        )
        for ids_per_row in (None, 3)
    }


def other_cases() -> dict[str, Sample]:
    plain = linear_log_probs_sample(70, 5, 29, ids_per_row=2)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    options: dict[str, Any] = {"ids_per_row": 3, "ignored": True, **ALL_LOG_PROBS_OPTIONS}
    return {
        **{f"{dtype}": linear_log_probs_sample(70, 16, 29, dtype=dtype) for dtype in dtypes},
        **{f"{dtype} all": linear_log_probs_sample(70, 16, 29, dtype=dtype, **options) for dtype in dtypes},
        "float32 results": linear_log_probs_sample(70, 16, 29, dtype=torch.bfloat16, output_dtype=torch.float32),
        "no leading dimension": linear_log_probs_sample((), 5, 29),
        "no leading dimension, several ids": linear_log_probs_sample((), 5, 29, ids_per_row=3),
        "two leading dimensions": linear_log_probs_sample((2, 3), 5, 29, **options),
        "no rows": linear_log_probs_sample(0, 5, 29),
        "all ignored": plain.with_arguments(ids=torch.full((70, 2), 3), ignore_index=3),
        "an ignore_index among the classes": linear_log_probs_sample(70, 5, 29, ignore_index=3, ignored=True),
        "unsigned ids": plain.with_arguments(ids=plain.arguments["ids"].to(torch.uint8)),
        "one id twice": plain.with_arguments(ids=plain.arguments["ids"][:, :1].expand(70, 2)),
        "large logits": plain.with_arguments(input=plain.arguments["input"] * 1e4),
        "a slice of padding": padded(plain, 20),
        "two slices of padding": padded(plain, 3),
        "nothing but padding": padded(plain, 0),
        "a class that is no number": with_bias(plain, {7: torch.nan}),
        "an infinite class": with_bias(plain, {7: torch.inf}),
        "an infinite class on two ranks": with_bias(plain, {7: torch.inf, 28: torch.inf}),
        "an infinite class and one that is no number": with_bias(plain, {7: torch.inf, 2: torch.nan}),
        "only the input": replace(plain, differentiable=("input",)),
        "only the weight": replace(plain, differentiable=("linear_weight",)),
        "strides": plain.with_arguments(
            input=plain.arguments["input"].T.contiguous().T,
            linear_weight=plain.arguments["linear_weight"].T.contiguous().T,
            ids=plain.arguments["ids"].T.contiguous().T,
        ),
    }


def padded(sample: Sample, classes: int) -> Sample:
    """Only so many classes are more than padding: the logits of the others are -inf."""
    sample = with_bias(sample, dict.fromkeys(range(classes, 29), -torch.inf))
    return sample.with_arguments(ids=sample.arguments["ids"] % max(classes, 1))


def with_bias(sample: Sample, changed: dict[int, float]) -> Sample:
    """The bias of some classes is another."""
    bias = sample.arguments["linear_bias"].clone()
    for index, value in changed.items():
        bias[index] = value
    return sample.with_arguments(linear_bias=bias)


def sure_predictions() -> Sample:
    """Log-probabilities of -2e-4 from logits of 1012 and 1000: float32 numbers there are 6e-5 apart."""
    ids = torch.arange(9) * 3
    arguments = {
        "input": torch.eye(29)[ids] * 12.0,
        "linear_weight": torch.eye(29),
        "linear_bias": torch.full((29,), 1000.0),
        "ids": ids,
    }
    return Sample("linear_log_probs", arguments, ("input", "linear_weight"))


def predictions() -> Sample:
    """The ids are the argmax; sums of 64 products in float32 come out otherwise in another order."""
    sample = linear_log_probs_sample(131, 64, 29, dtype=torch.float32).on("cpu")
    logits = torch.nn.functional.linear(*(sample.arguments[k] for k in ("input", "linear_weight", "linear_bias")))
    return sample.with_arguments(ids=logits.argmax(1))


def gradients_of_each(sample: Sample, namespace: Any) -> dict[str, Tensor]:
    """The gradients from each result alone, and from two of them."""
    leaves = sample.leaves()
    found = sample.results(namespace.linear_log_probs, leaves)
    gradients = {}
    for names in [*combinations(DIFFERENTIABLE, 1), *combinations(DIFFERENTIABLE, 2)]:
        results = [found[name] for name in names]
        upstream = [normal(*result.shape, seed=seed).to(result) for seed, result in enumerate(results)]
        each = torch.autograd.grad(results, list(leaves.values()), upstream, retain_graph=True)
        gradients |= {f"{'+'.join(names)}: gradient of {leaf}": g for leaf, g in zip(leaves, each, strict=True)}
    return gradients


def gradients_of_uncounted_rows(sample: Sample) -> dict[str, Tensor]:
    """Of rows that do not count, for an infinite upstream gradient; their inputs are infinite or NaN as well."""
    input = sample.arguments["input"].clone()
    input[0], input[1] = torch.inf, torch.nan
    ids = torch.full_like(sample.arguments["ids"], -100)
    leaf = input.requires_grad_()
    found = vocab_parallel_linear_log_probs(**{**sample.arguments, "input": leaf, "ids": ids})
    results = [found.log_probs, found.entropy, found.logsumexp]
    (gradient,) = torch.autograd.grad(results, leaf, [torch.full_like(result, torch.inf) for result in results])
    return {name: value.detach() for name, value in found._asdict().items()} | {"gradient": gradient}


def messages(sample: Sample) -> dict[str, tuple[int, int]]:
    """How many messages forward and backward cost, by which arguments are differentiated."""
    found = {}
    for differentiable in (("input", "linear_weight"), ("linear_weight",)):
        leaves = replace(sample, differentiable=differentiable).leaves()
        with Watch() as forward:
            results = vocab_parallel_linear_log_probs(**{**sample.arguments, **leaves})
        with Watch() as backward:
            torch.autograd.grad(results.entropy.sum(), list(leaves.values()))
        found["+".join(differentiable)] = forward.messages, backward.messages
    return found


def error_of(sample: Sample) -> str:
    try:
        vocab_parallel_linear_log_probs(**sample.arguments)
    except (ValueError, TypeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def errors(rank: int, size: int) -> dict[str, str]:
    """The error of every bad call; "on rank 1" are those whose arguments are wrong there only."""
    sample = own_part(linear_log_probs_sample(6, 5, 29), rank, size)
    bad: dict[str, dict[str, Any]] = {
        "ids": {"ids": torch.tensor([[0, 1], [2, 3], [4, -1], [4, 5], [6, 7], [8, 9]])},
        "ids shape": {"ids": torch.zeros(5, dtype=torch.int64)},
        "ids dtype": {"ids": torch.zeros(6, dtype=torch.float64)},
        "input shape": {"input": torch.tensor(1.0).double(), "ids": torch.tensor(0)},
        "linear_weight": {"linear_weight": normal(8, 4)},
        "linear_bias": {"linear_bias": normal(3)},
        "dtype": {"linear_weight": sample.arguments["linear_weight"].float()},
        "temperature": {"temperature": 0.0},
        "small temperature": {"temperature": 1e-310},
        "softcap": {"softcap": -1.0},
        "ignore_index": {"ignore_index": 1.5},
        "output_dtype": {"output_dtype": torch.int64},
    }
    here = {
        "on rank 1: ids a row": {"ids": torch.zeros(6, 3, dtype=torch.int64)},
        "on rank 1: rows": {"input": normal(5, 5), "ids": torch.zeros(5, dtype=torch.int64)},
        "on rank 1: temperature": {"temperature": True},
    }
    bad |= here if rank == 1 else {name: {} for name in here}
    return {name: error_of(sample.with_arguments(**arguments)) for name, arguments in bad.items()}


def second_order_error(sample: Sample) -> str:
    leaves = sample.leaves()
    results = vocab_parallel_linear_log_probs(**{**sample.arguments, **leaves})
    try:
        torch.autograd.grad(results.entropy.sum(), leaves["input"], create_graph=True)
    except RuntimeError as error:
        return str(error)
    return "none"


def worker(folder: Path) -> dict[str, Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    cases = options_cases() | exact_cases() | other_cases()
    cases |= {"sure predictions": sure_predictions(), "predictions": predictions()}
    sample = own_part(linear_log_probs_sample(300, 5, 29), rank, size)
    with Watch() as largest:
        evaluate(sample, PARALLEL)
    results = {
        "results": {name: evaluate(own_part(case, rank, size), PARALLEL) for name, case in cases.items()},
        "each": {"all": gradients_of_each(own_part(pair_cases()["3 ids"], rank, size), PARALLEL)},
        "uncounted": gradients_of_uncounted_rows(sample),
        "largest": largest.elements,
        "messages": messages(sample),
        "errors": errors(rank, size),
        "second": second_order_error(sample),
    }
    pair = dist.new_group([1, 2])
    if rank > 0:
        results["of the pair"] = {
            name: evaluate(own_part(case, rank - 1, 2).with_arguments(group=pair), PARALLEL)
            for name, case in pair_cases().items()
        }
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank computed."""
    return run_once(worker, 3, tmp_path_factory)


def assert_all_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            actual[key], value, rtol=1e-12, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", options_cases())
def test_every_combination_of_options_equals_the_op_on_the_whole_weight(ranks: list[dict[str, Any]], name: str) -> None:
    expected = evaluate(options_cases()[name].on("cpu"), ops)
    assert_all_close(assembled([rank["results"] for rank in ranks], name), expected)


@pytest.mark.parametrize("name", pair_cases())
def test_a_group_is_a_part_of_the_processes(ranks: list[dict[str, Any]], name: str) -> None:
    expected = evaluate(pair_cases()[name].on("cpu"), ops)
    assert_all_close(assembled([rank["of the pair"] for rank in ranks[1:]], name), expected)


def test_each_result_can_be_differentiated_alone(ranks: list[dict[str, Any]]) -> None:
    expected = gradients_of_each(pair_cases()["3 ids"].on("cpu"), ops)
    assert_all_close(assembled([rank["each"] for rank in ranks], "all"), expected)


@pytest.mark.parametrize("name", exact_cases())
def test_of_equal_logits_the_first_is_the_argmax_and_none_is_above_another(
    ranks: list[dict[str, Any]], name: str
) -> None:
    actual = assembled([rank["results"] for rank in ranks], name)
    arguments = exact_cases()[name].on("cpu").arguments
    logits = torch.nn.functional.linear(*(arguments[k].double() for k in ("input", "linear_weight", "linear_bias")))
    first = logits.gather(1, arguments["ids"][:, :1])
    assert ((logits == logits.amax(1, keepdim=True)).sum(1) > 1).sum() > 10
    assert torch.equal(actual["argmax"], logits.argmax(1))
    assert torch.equal(actual["rank"], (logits > first).sum(1))


def test_an_id_that_is_the_argmax_has_rank_0_however_its_logit_is_rounded(ranks: list[dict[str, Any]]) -> None:
    actual, ids = assembled([rank["results"] for rank in ranks], "predictions"), predictions().arguments["ids"]
    assert torch.equal(actual["argmax"], ids)
    assert not actual["rank"].any()


@pytest.mark.parametrize("name", other_cases())
def test_every_dtype_shape_and_edge_is_as_good_as_torch(ranks: list[dict[str, Any]], name: str) -> None:
    sample = other_cases()[name].on("cpu")
    actual, torchs = assembled([rank["results"] for rank in ranks], name), evaluate(sample, reference)
    truth = evaluate(sample.to(torch.float64), reference, upstream_dtype=torchs["result"].dtype)
    assert actual.keys() == truth.keys()
    for key, true_value in truth.items():
        if key in INTEGER_RESULTS:
            assert actual[key].dtype == torch.int64
            # Rounding of the logits may exchange two.
            assert sample.dtype != torch.float64 or torch.equal(actual[key], true_value), key
            continue
        tolerance = TOLERANCES[sample.dtype] * max(_largest(true_value), sample.term_size(key))
        assert_as_good_as_torch(actual[key], true_value, torchs[key], tolerance, key)


def test_sure_predictions_keep_their_digits(ranks: list[dict[str, Any]]) -> None:
    truth = evaluate(sure_predictions().on("cpu").to(torch.float64), reference)["log_probs"]
    assert truth.min() > -2e-4
    actual = assembled([rank["results"] for rank in ranks], "sure predictions")["log_probs"]
    torch.testing.assert_close(actual.double(), truth, rtol=1e-2, atol=0.0)


def test_rows_that_do_not_count_have_no_gradient_whatever_comes_from_upstream(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for name, value in rank["uncounted"].items():
            assert torch.equal(value, torch.full_like(value, -1 if name in INTEGER_RESULTS else 0)), name


def test_the_logits_are_never_whole(ranks: list[dict[str, Any]]) -> None:
    for rank, own_classes in zip(ranks, SLICES[len(ranks)], strict=True):
        # Chunks of 64 rows; the input and its gradient have 300 x 5 elements, what is exchanged 7 numbers a row.
        assert rank["largest"] <= max(64 * own_classes, 300 * 5, len(ranks) * 7 * 300)
    assert max(rank["largest"] for rank in ranks) < 300 * max(SLICES[len(ranks)])


def test_a_call_costs_three_messages_and_backward_one(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["messages"] == {"input+linear_weight": (3, 1), "linear_weight": (3, 0)}


def test_errors_name_the_argument_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    of_rank_1 = "the arguments of rank 1 are wrong: its own error says which"
    for rank, found in enumerate(rank["errors"] for rank in ranks):
        own_classes = SLICES[len(ranks)][rank]
        assert found == {
            "ids": "IndexError: ids[2, 1] = -1 is out of range for 29 classes",
            "ids shape": "ValueError: ids must have the shape of input (6, 5) without its last dimension, or with K "
            "ids a row in its place, got (5,)",
            "ids dtype": "ValueError: ids must have an integer dtype, got torch.float64",
            "input shape": "ValueError: input must have shape (..., D) with D >= 1, got ()",
            "linear_weight": "ValueError: linear_weight must have shape (C_r, D=5) with C_r >= 1, got (8, 4)",
            "linear_bias": f"ValueError: linear_bias must have shape (C_r={own_classes},), got (3,)",
            "dtype": "ValueError: linear_weight must have the dtype of input, torch.float64, got torch.float32",
            "temperature": "ArgumentError: temperature must be positive and finite, got 0.0",
            "small temperature": "ArgumentError: temperature must be between 2.2250738585072014e-308 and "
            "1.7976931348623157e+308 to be a number in float64, got 1e-310",
            "softcap": "ArgumentError: softcap must be positive and finite, or None, got -1.0",
            "ignore_index": "TypeError: ignore_index must be an integer, got 1.5",
            "output_dtype": "ArgumentError: output_dtype must be torch.float32, float64, bfloat16, float16 or None, "
            "got torch.int64",
            "on rank 1: ids a row": "ValueError: the number of ids a row must be the same on all ranks, got 1 on rank "
            "0 and 3 on rank 1",
            "on rank 1: rows": "ValueError: the number of rows of input must be the same on all ranks, got 6 on rank 0 "
            "and 5 on rank 1",
            "on rank 1: temperature": "TypeError: temperature must be a positive, finite number, got True"
            if rank == 1
            else f"ValueError: {of_rank_1}",
        }


def test_a_second_derivative_is_an_error(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["second"] == (
            "log-probabilities of classes that are spread over processes have no second derivative"
        )


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of this process only."""
    backend = "cuda:nccl" if device.type == "cuda" else "cpu:gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_process_alone_computes_the_op_where_its_tensors_are(alone: None) -> None:
    for ids_per_row in (None, 3):
        for dtype in DTYPES:
            options: dict[str, Any] = {"ids_per_row": ids_per_row, "ignored": True, **ALL_LOG_PROBS_OPTIONS}
            check(linear_log_probs_sample(131, 5, 29, dtype=dtype, **options), PARALLEL)
    with pytest.raises(IndexError, match=r"ids\[3\] = 31 is out of range for 29 classes"):
        vocab_parallel_linear_log_probs(normal(4, 5), normal(29, 5), torch.tensor([0, 1, 2, 31], device=device))


def test_without_a_process_group_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="needs a process group: call init_process_group first"):
        vocab_parallel_linear_log_probs(normal(2, 3), normal(4, 3), integers(4, (2,)))
