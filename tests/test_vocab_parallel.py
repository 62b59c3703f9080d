"""vocab_parallel_linear_cross_entropy on 3 and 2 ranks, with uneven slices, against the op on the whole weight.

The ranks are on the CPU; a process alone is also where --device says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import (
    ALL_LOSS_OPTIONS,
    DTYPES,
    LOSS_OPTIONS,
    REDUCTIONS,
    TOLERANCES,
    Sample,
    _largest,
    assert_as_good_as_torch,
    check,
    device,
    evaluate,
    linear_cross_entropy_sample,
    names_of,
    normal,
    token_weights,
)
from processes import run_once
from torch import Tensor
from vocab_parallel_runs import SLICES, Watch, assembled, own_part

from charlm import ops
from charlm.distributed import vocab_parallel_linear_cross_entropy
from charlm.ops import reference

PARALLEL = SimpleNamespace(linear_cross_entropy=vocab_parallel_linear_cross_entropy)


def options_cases() -> dict[str, Sample]:
    """Every combination of options and reductions, with and without a bias, in float64 and in several chunks."""
    return {
        f"{names_of(options)} {reduction} {'bias' if bias else 'no bias'}": linear_cross_entropy_sample(
            131, 5, 29, targets="ignored", bias=bias, reduction=reduction, **options
        )
        for options in LOSS_OPTIONS
        for reduction in REDUCTIONS
        for bias in (True, False)
    }


def pair_cases() -> dict[str, Sample]:
    """For the group of two."""
    return {
        reduction: linear_cross_entropy_sample(70, 5, 29, targets="ignored", reduction=reduction, **ALL_LOSS_OPTIONS)
        for reduction in REDUCTIONS
    }


def other_cases() -> dict[str, Sample]:
    plain = linear_cross_entropy_sample(70, 5, 29)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return {
        **{f"{dtype}": linear_cross_entropy_sample(70, 16, 29, dtype=dtype) for dtype in dtypes},
        **{
            f"{dtype} all": linear_cross_entropy_sample(70, 16, 29, dtype=dtype, targets="ignored", **ALL_LOSS_OPTIONS)
            for dtype in dtypes
        },
        "no leading dimension": linear_cross_entropy_sample((), 5, 29, reduction="none"),
        "two leading dimensions": linear_cross_entropy_sample((2, 3), 5, 29, reduction="none", **ALL_LOSS_OPTIONS),
        "no rows": linear_cross_entropy_sample(0, 5, 29),
        "no rows, sum": linear_cross_entropy_sample(0, 5, 29, reduction="sum"),
        "all ignored": linear_cross_entropy_sample(7, 5, 29, ignore_index=3).with_arguments(target=torch.full((7,), 3)),
        "an ignore_index among the classes": linear_cross_entropy_sample(70, 5, 29, ignore_index=3, targets="ignored"),
        "unsigned targets": plain.with_arguments(target=plain.arguments["target"].to(torch.uint8)),
        "large logits": plain.with_arguments(input=plain.arguments["input"] * 1e4),
        "a slice of padding": padded(plain),
        "gradient of the token weights": with_token_weights(plain),
        "only the input": replace(plain, differentiable=("input",)),
        "only the weight": replace(plain, differentiable=("linear_weight",)),
        "strides": plain.with_arguments(
            input=plain.arguments["input"].T.contiguous().T,
            linear_weight=plain.arguments["linear_weight"].T.contiguous().T,
        ),
    }


def with_token_weights(sample: Sample) -> Sample:
    """Which require a gradient, and of ignored rows are NaN."""
    target, weights = sample.arguments["target"].clone(), token_weights((70,), torch.float64, seed=7)
    target[::4], weights[::4] = -100, torch.nan
    changed = sample.with_arguments(target=target, token_weights=weights)
    return replace(changed, differentiable=(*sample.differentiable, "token_weights"))


def sure_predictions() -> Sample:
    """Losses of 2e-4 from logits of 1012 and 1000: float32 numbers there are 6e-5 apart; their difference is exact."""
    sample = linear_cross_entropy_sample(9, 29, 29, dtype=torch.float32, reduction="none")
    target = torch.arange(9) * 3
    return sample.with_arguments(
        input=torch.eye(29)[target] * 12.0,
        linear_weight=torch.eye(29),
        linear_bias=torch.full((29,), 1000.0),
        target=target,
    )


def padded(sample: Sample) -> Sample:
    """The classes of the last rank are padding: their logits are -inf."""
    bias = sample.arguments["linear_bias"].clone()
    bias[20:] = -torch.inf
    return sample.with_arguments(linear_bias=bias, target=sample.arguments["target"] % 20)


def messages(sample: Sample) -> dict[str, tuple[int, int]]:
    """How many messages forward and backward cost, by which arguments are differentiated."""
    found = {}
    for differentiable in (("input", "linear_weight"), ("linear_weight",)):
        leaves = replace(sample, differentiable=differentiable).leaves()
        with Watch() as forward:
            loss = sample.call(vocab_parallel_linear_cross_entropy, leaves)
        with Watch() as backward:
            torch.autograd.grad(loss, list(leaves.values()))
        found["+".join(differentiable)] = forward.messages, backward.messages
    return found


def error_of(sample: Sample) -> str:
    try:
        sample.call(vocab_parallel_linear_cross_entropy, {})
    except (ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def errors(rank: int, size: int) -> dict[str, str]:
    """The error of every bad call; "on rank 1" are those whose arguments are wrong there only."""
    sample = own_part(linear_cross_entropy_sample(6, 5, 29, weighted=True), rank, size)
    bad: dict[str, dict[str, Any]] = {
        "target": {"target": torch.tensor([0, 1, 2, 31, 4, 5])},
        "target shape": {"target": torch.zeros(5, dtype=torch.int64)},
        "probabilities": {"target": torch.zeros(6, dtype=torch.float64)},
        "weight": {"weight": torch.ones(28)},
        "token_weights": {"token_weights": torch.ones(5)},
        "integer token_weights": {"token_weights": torch.ones(6, dtype=torch.int64)},
        "linear_weight": {"linear_weight": normal(8, 4)},
        "linear_bias": {"linear_bias": normal(3)},
        "dtype": {"linear_weight": sample.arguments["linear_weight"].float()},
        "reduction": {"reduction": "average"},
        "label_smoothing": {"label_smoothing": 1.5},
        "softcap": {"softcap": -1.0},
        "z_loss": {"z_loss": -1.0},
    }
    here = {
        "on rank 1: rows": {"input": normal(5, 5), "target": torch.zeros(5, dtype=torch.int64)},
        "on rank 1: linear_bias": {"linear_bias": normal(3)},
    }
    bad |= here if rank == 1 else {name: {} for name in here}
    return {name: error_of(sample.with_arguments(**arguments)) for name, arguments in bad.items()}


def second_order_error(sample: Sample) -> str:
    leaves = sample.leaves()
    loss = sample.call(vocab_parallel_linear_cross_entropy, leaves)
    try:
        torch.autograd.grad(loss, leaves["input"], create_graph=True)
    except RuntimeError as error:
        return str(error)
    return "none"


def worker(folder: Path) -> dict[str, Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    cases = options_cases() | other_cases() | {"sure predictions": sure_predictions()}
    sample = own_part(linear_cross_entropy_sample(300, 5, 29), rank, size)
    with Watch() as largest:
        evaluate(sample, PARALLEL)
    results = {
        "results": {name: evaluate(own_part(case, rank, size), PARALLEL) for name, case in cases.items()},
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


def assert_equals_the_op(results: list[dict[str, dict[str, Tensor]]], name: str, sample: Sample) -> None:
    actual, expected = assembled(results, name), evaluate(sample.on("cpu"), ops)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            actual[key], value, rtol=1e-12, atol=1e-13, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", options_cases())
def test_every_combination_of_options_equals_the_op_on_the_whole_weight(ranks: list[dict[str, Any]], name: str) -> None:
    assert_equals_the_op([rank["results"] for rank in ranks], name, options_cases()[name])


@pytest.mark.parametrize("name", pair_cases())
def test_a_group_is_a_part_of_the_processes(ranks: list[dict[str, Any]], name: str) -> None:
    assert_equals_the_op([rank["of the pair"] for rank in ranks[1:]], name, pair_cases()[name])


@pytest.mark.parametrize("name", other_cases())
def test_every_dtype_shape_and_edge_is_as_good_as_torch(ranks: list[dict[str, Any]], name: str) -> None:
    sample = other_cases()[name].on("cpu")
    actual, torchs = assembled([rank["results"] for rank in ranks], name), evaluate(sample, reference)
    truth = evaluate(sample.to(torch.float64), reference, upstream_dtype=sample.dtype)
    for key, true_value in truth.items():
        tolerance = TOLERANCES[sample.dtype] * max(_largest(true_value), sample.term_size(key))
        assert_as_good_as_torch(actual[key], true_value, torchs[key], tolerance, key)


def test_sure_predictions_keep_their_digits(ranks: list[dict[str, Any]]) -> None:
    truth = evaluate(sure_predictions().on("cpu").to(torch.float64), reference)["result"]
    assert truth.max() < 2e-4
    actual = assembled([rank["results"] for rank in ranks], "sure predictions")["result"]
    torch.testing.assert_close(actual.double(), truth, rtol=1e-2, atol=0.0)


def test_the_logits_are_never_whole(ranks: list[dict[str, Any]]) -> None:
    for rank, own_classes in zip(ranks, SLICES[len(ranks)], strict=True):
        # Chunks of 64 rows; the input and its gradient have 300 x 5 elements, what is exchanged has 4 numbers a row.
        assert rank["largest"] <= max(64 * own_classes, 300 * 5, len(ranks) * 4 * 300)
    assert max(rank["largest"] for rank in ranks) < 300 * max(SLICES[len(ranks)])


def test_a_call_costs_two_messages_and_backward_one(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["messages"] == {"input+linear_weight": (2, 1), "linear_weight": (2, 0)}


def test_errors_name_the_argument_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    features = "(C_r, D=5) with C_r >= 1"
    for rank, found in enumerate(rank["errors"] for rank in ranks):
        own_classes = SLICES[len(ranks)][rank]
        of_rank_1 = f"linear_bias must have shape (C_r={own_classes},), got (3,)"
        assert found == {
            "target": "IndexError: target[3] = 31 is out of range for 29 classes",
            "target shape": "ValueError: target must have the shape of input (6, 5) without its last dimension "
            "(class indices), got (5,)",
            "probabilities": "ValueError: target must have an integer dtype, got torch.float64",
            "weight": "ValueError: weight must have shape (C=29,), got (28,)",
            "token_weights": "ArgumentError: token_weights must have the shape of the row losses, (6,), got (5,)",
            "integer token_weights": "ArgumentError: token_weights must have a floating-point dtype, got torch.int64",
            "linear_weight": f"ValueError: linear_weight must have shape {features}, got (8, 4)",
            "linear_bias": f"ValueError: linear_bias must have shape (C_r={own_classes},), got (3,)",
            "dtype": "ValueError: linear_weight must have the dtype of input, torch.float64, got torch.float32",
            "reduction": "ArgumentError: reduction must be 'none', 'mean' or 'sum', got 'average'",
            "label_smoothing": "ArgumentError: label_smoothing must be between 0 and 1, got 1.5",
            "softcap": "ArgumentError: softcap must be positive and finite, or None, got -1.0",
            "z_loss": "ArgumentError: z_loss must be non-negative and finite, got -1.0",
            "on rank 1: rows": "ValueError: the number of rows of input must be the same on all ranks, got 6 on rank 0 "
            "and 5 on rank 1",
            "on rank 1: linear_bias": f"ValueError: {of_rank_1}"
            if rank == 1
            else "ValueError: the arguments of rank 1 are wrong: its own error says which",
        }


def test_a_second_derivative_is_an_error(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["second"] == "a loss whose classes are spread over processes has no second derivative"


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of this process only."""
    backend = "cuda:nccl" if device.type == "cuda" else "cpu:gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_process_alone_computes_the_op_where_its_tensors_are(alone: None) -> None:
    for reduction in REDUCTIONS:
        options = {"targets": "ignored", "reduction": reduction, **ALL_LOSS_OPTIONS}
        for dtype in DTYPES:
            check(linear_cross_entropy_sample(131, 5, 29, dtype=dtype, **options), PARALLEL)
    target = torch.tensor([0, 1, 2, 31], device=device)
    with pytest.raises(IndexError, match=r"target\[3\] = 31 is out of range for 29 classes"):
        vocab_parallel_linear_cross_entropy(normal(4, 5), normal(29, 5), target)


def test_without_a_process_group_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="needs a process group: call init_process_group first"):
        vocab_parallel_linear_cross_entropy(normal(2, 3), normal(4, 3), torch.tensor([0, 1]))
