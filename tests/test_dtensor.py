"""The ops on DTensors: every op with every placement of its arguments, on 2 ranks and on a mesh of 2 x 2.

What the ranks find is compared with the same op on the whole tensors, and its placements with those of PyTorch's ops.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import dtensor_models
import pytest
import torch
from cases import (
    INTEGER_RESULTS,
    Sample,
    embedding_linear_sample,
    evaluate,
    integers,
    normal,
)
from dtensor_cases import (
    PART,
    ROWS,
    SECOND,
    THIRD,
    WHOLE,
    autocast_cases,
    dtype_cases,
    log_probs_cases,
    loss_cases,
    mesh_cases,
    other_cases,
    second_derivative_cases,
    torch_cases,
)
from dtensor_runs import Found, worker, worker_of_four
from processes import run_once
from torch.distributed.tensor import Placement

from charlm import ops

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of 2 ranks found."""
    return run_once(worker, 2, tmp_path_factory)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of 2 x 2 ranks found."""
    return run_once(worker_of_four, 4, tmp_path_factory)


def assert_equals_the_op(ranks: list[Found], sample: Sample) -> None:
    """Every rank has found what the op finds on the whole tensors."""
    expected = evaluate(sample, ops)
    for found in ranks:
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key][0], value, rtol=1e-12, atol=1e-13, equal_nan=True, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize("name", loss_cases())
def test_losses_in_every_placement_are_those_of_the_whole(ranks: list[dict[str, Any]], name: str) -> None:
    assert_equals_the_op([rank["found"][name] for rank in ranks], loss_cases()[name][0])


@pytest.mark.parametrize("name", log_probs_cases())
def test_log_probs_in_every_placement_are_those_of_the_whole(ranks: list[dict[str, Any]], name: str) -> None:
    assert_equals_the_op([rank["found"][name] for rank in ranks], log_probs_cases()[name][0])


@pytest.mark.parametrize("name", other_cases())
def test_contexts_networks_and_edges_are_those_of_the_whole(ranks: list[dict[str, Any]], name: str) -> None:
    assert_equals_the_op([rank["found"][name] for rank in ranks], other_cases()[name][0])


@pytest.mark.parametrize("name", mesh_cases())
def test_a_mesh_of_two_dimensions(four_ranks: list[dict[str, Any]], name: str) -> None:
    assert_equals_the_op([rank["found"][name] for rank in four_ranks], mesh_cases()[name][0])


@pytest.mark.parametrize("name", torch_cases())
def test_values_and_placements_are_those_of_torch(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        ours, torchs = rank["torch"][name]
        for key, (value, placements) in torchs.items():
            torch.testing.assert_close(ours[key][0], value, rtol=1e-12, atol=1e-13)
            assert ours[key][1] == placements, key


@pytest.mark.parametrize(
    ("name", "key", "placement"),
    [
        ("none, indices, all options: layer by positions", "result", SECOND),
        ("mean, indices, plain: layer by classes, input by positions", "gradient of input", SECOND),
        ("mean, indices, plain: layer by classes, input by positions", "gradient of linear_weight", ROWS),
        ("mean, indices, plain: layer by classes, input by positions", "gradient of linear_bias", WHOLE),
        ("mean, indices, plain: layer, input partial", "gradient of input", WHOLE),
        ("mean, indices, plain: layer, input partial", "gradient of linear_weight", SECOND),
        ("mean, indices, plain: layer, input by features", "gradient of input", THIRD),
        ("mean: network by rows", "gradient of weight1", PART),
        ("mean: network, both layers", "gradient of weight1", ROWS),
        ("mean: network, both layers", "gradient of embedding", PART),
        ("contexts (7,): embedding by tokens", "gradient of embedding", ROWS),
        ("relu: by rows and hidden units", "result", SECOND),
        ("3 ids, plain: logits by rows", "log_probs", ROWS),
        ("3 ids, plain: logits by rows", "rank", ROWS),
        ("3 ids, plain: logits by classes", "log_probs", WHOLE),
        ("3 ids, plain: logits by classes", "gradient of input", SECOND),
        ("3 ids, plain: layer by positions", "log_probs", SECOND),
        ("3 ids, plain: layer by positions", "entropy", SECOND),
        ("3 ids, plain: layer by classes", "argmax", WHOLE),
        ("3 ids, plain: layer by classes", "gradient of input", PART),
        ("3 ids, plain: layer by classes", "gradient of linear_weight", ROWS),
        ("ids by their number, logits by rows", "log_probs", ROWS),
    ],
)
def test_a_gradient_is_placed_as_its_argument(
    ranks: list[dict[str, Any]], name: str, key: str, placement: Placement
) -> None:
    for rank in ranks:
        assert rank["found"][name][key][1] == (placement,)


@pytest.mark.parametrize("name", dtype_cases())
def test_every_dtype_is_as_good_as_on_the_whole(ranks: list[dict[str, Any]], name: str) -> None:
    assert_near_the_op([rank["dtypes"][name] for rank in ranks], dtype_cases()[name][0])


@pytest.mark.parametrize("name", autocast_cases())
def test_autocast(ranks: list[dict[str, Any]], name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert_near_the_op([rank["autocast"][name] for rank in ranks], autocast_cases()[name][0])


def assert_near_the_op(ranks: list[Found], sample: Sample) -> None:
    """A rank rounds its part of a sum, so that a number may be off by a few units in the last place of the largest."""
    expected = evaluate(sample, ops)
    for found in ranks:
        for key, value in expected.items():
            assert found[key][0].dtype == value.dtype
            if key in INTEGER_RESULTS:
                # Rounding of a layer's logits may exchange two.
                assert sample.op == "linear_log_probs" or torch.equal(found[key][0], value)
                continue
            rounding = torch.finfo(torch.bfloat16 if torch.is_autocast_enabled("cpu") else value.dtype).eps
            largest = value.abs().max().item()
            torch.testing.assert_close(found[key][0], value, rtol=0.0, atol=4 * rounding * max(largest, 1e-3))


@pytest.mark.parametrize("name", second_derivative_cases())
def test_second_derivatives(ranks: list[dict[str, Any]], name: str) -> None:
    sample = second_derivative_cases()[name][0]
    leaves = sample.leaves()
    result = sample.call(getattr(ops, sample.op), leaves).square().sum()
    gradients = torch.autograd.grad(result, list(leaves.values()), create_graph=True)
    length = sum((gradient.square().sum() for gradient in gradients), torch.zeros(()))
    expected = dict(zip(leaves, torch.autograd.grad(length, list(leaves.values())), strict=True))
    for rank in ranks:
        torch.testing.assert_close(rank["second"][name], expected, rtol=1e-10, atol=1e-12)


def test_the_kernels_run_on_the_rows_of_each_rank(ranks: list[dict[str, Any]]) -> None:
    for rows, units, rank in zip((4, 3), (5, 4), ranks, strict=True):
        forward = {name: calls[0] for name, calls in rank["kernels"].items()}
        assert {name: op for name, (op, _) in forward.items()} == {
            "cross_entropy": "cross_entropy_forward",
            "linear_cross_entropy": "linear_cross_entropy_forward",
            "mlp_cross_entropy": "mlp_cross_entropy_forward",
            "log_probs": "log_probs_forward",
            "linear_log_probs": "linear_log_probs_forward",
            "embedding_linear": "embedding_linear_forward",
            "embedding_linear by hidden units": "embedding_linear_forward",
        }
        shapes = {name: shapes for name, (_, shapes) in forward.items()}
        assert shapes["cross_entropy"] == [(rows, 5), (rows,)]
        assert shapes["linear_cross_entropy"] == [(rows, 5), (9, 5), (rows,), (9,)]
        assert shapes["mlp_cross_entropy"][:2] == [(rows, 3), (rows,)]
        assert shapes["log_probs"] == [(rows, 5), (rows, 2)]
        assert shapes["linear_log_probs"] == [(rows, 5), (9, 5), (rows,), (9,)]
        assert shapes["embedding_linear"] == [(rows, 3), (27, 4), (9, 12), (9,)]
        assert shapes["embedding_linear by hidden units"] == [(7, 3), (27, 4), (units, 12), (units,)]
        assert "embedding_linear_backward" in [op for op, _ in rank["kernels"]["embedding_linear by hidden units"]]


def test_modes_of_torch(ranks: list[dict[str, Any]]) -> None:
    logits, target = normal(7, 5), integers(5, (7,))
    leaf = logits.clone().requires_grad_()
    loss = ops.cross_entropy(leaf, target)
    (gradient,) = torch.autograd.grad(loss, leaf)
    head = normal(5, 4).requires_grad_()
    (head_gradient,) = torch.autograd.grad(ops.linear_log_probs(normal(7, 4), head, target).log_probs.sum(), head)
    for rank in ranks:
        for value in rank["modes"]["found"].values():
            torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0.0)
        torch.testing.assert_close(rank["modes"]["one"], [ops.cross_entropy(logits[:1], target[:1])] * 2)
        torch.testing.assert_close(rank["modes"]["compiled gradient"], gradient, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(rank["modes"]["compiled entropy"], ops.log_probs(logits, target).entropy)
        torch.testing.assert_close(rank["modes"]["compiled gradient of a layer by classes"], head_gradient)
        hidden = ops.embedding_linear(**embedding_linear_sample(7).arguments)
        torch.testing.assert_close(rank["modes"]["compiled hidden units"], hidden, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "way",
    [
        "tensor parallel, charlm.nn",
        "tensor parallel, output layer",
        "tensor parallel, logits",
        "tensor parallel, loss_parallel",
    ],
)
def test_training_in_tensor_parallel_has_the_losses_of_one_process(ranks: list[dict[str, Any]], way: str) -> None:
    model = dtensor_models.names() if "charlm.nn" in way else dtensor_models.text("layer" in way)
    expected = dtensor_models.train(model)
    assert expected[-1] < expected[0]
    for rank in ranks:
        assert rank["training"][way] == pytest.approx(expected, rel=1e-9)


def test_training_under_fsdp2_has_the_losses_of_one_process(ranks: list[dict[str, Any]]) -> None:
    whole, halves = dtensor_models.names(), [rank["training"]["FSDP2"] for rank in ranks]
    assert [sum(two) / 2 for two in zip(*halves, strict=True)] == pytest.approx(
        dtensor_models.train_in_halves(whole), rel=1e-9
    )


def test_training_under_fsdp2_and_tensor_parallel(four_ranks: list[dict[str, Any]]) -> None:
    first, second, third, fourth = (rank["training"] for rank in four_ranks)
    assert (first, third) == (second, fourth)
    expected = dtensor_models.train_in_halves(dtensor_models.text())
    assert [sum(two) / 2 for two in zip(first, third, strict=True)] == pytest.approx(expected, rel=1e-9)


def test_parameters_that_fsdp2_shards_further(four_ranks: list[dict[str, Any]]) -> None:
    linear = dtensor_models.text().output.linear
    parameters = {"linear_weight": linear.weight.detach(), "linear_bias": linear.bias.detach()}
    arguments = {"input": normal(7, 8), "target": integers(27, (7,)), **parameters}
    # The upstream gradient is 1 here, as of a loss.
    leaves = Sample("linear_cross_entropy", arguments, tuple(parameters)).leaves()
    loss = ops.linear_cross_entropy(**arguments | leaves)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    expected = dict(zip([f"gradient of {name}" for name in leaves], gradients, strict=True)) | {"result": loss.detach()}
    for rank in four_ranks:
        for key, (value, _) in rank["sharded twice"].items():
            torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-13)


def test_errors_name_the_argument(ranks: list[dict[str, Any]]) -> None:
    mixed = "got mixed torch.Tensor and DTensor"
    fix = "must be a DTensor too, as by torch.distributed.tensor.distribute_tensor"
    for rank in ranks:
        errors = dict(rank["errors"])
        assert mixed in errors.pop("a plain input")
        assert mixed in errors.pop("plain ids")
        assert errors == {
            "a plain target": f"RuntimeError: {mixed}: target {fix}",
            "plain parameters": f"RuntimeError: {mixed}: weight {fix}",
            "a plain weight": f"RuntimeError: {mixed}: linear_weight {fix}",
            "another mesh": "ValueError: target must be on the mesh of the other DTensors, of ranks [0, 1], got one of "
            "ranks [1, 0]",
            "target shape": "ValueError: target must have shape (7,) or (7, 5), got (6,)",
            "target shape, by classes": "ValueError: target must have shape (7,) or (7, 5), got (6,)",
            "bias shape": "ValueError: bias must have shape (4,), got (3,)",
            "class weights": "ValueError: weight must have shape (C=5,), got (4,)",
            "token weights, shape": "ValueError: token_weights must have shape (7,), got (4,)",
            "token weights, by classes": "ValueError: token_weights must have a floating-point dtype, got torch.int64",
            "plain token weights": f"RuntimeError: {mixed}: token_weights {fix}",
            "outside": "IndexError: target[3] = 31 is out of range for 5 classes",
            "outside, by classes": "IndexError: target[3] = 31 is out of range for 5 classes",
            "smoothing, by classes": "ValueError: label_smoothing must be between 0 and 1, got 2.0",
            "integer logits": "ValueError: input must be float32, float64, bfloat16 or float16, got torch.int64",
            "second derivative, by classes": "RuntimeError: a loss whose classes are spread over processes has no "
            "second derivative",
            "plain ids of log_probs": f"RuntimeError: {mixed}: ids {fix}",
            "ids shape": "ValueError: ids must have shape (7,) or (7, 6), got (6,)",
            "ids shape, by classes": "ValueError: ids must have shape (7,) or (7, 6), got (6,)",
            "ids outside, by classes": "IndexError: ids[3] = 31 is out of range for 5 classes",
            "ids dtype, by classes": "ValueError: ids must have an integer dtype, got torch.float64",
            "temperature, by classes": "ValueError: temperature must be between 1.1754943508222875e-38 and "
            "3.4028234663852886e+38 to be a number in float32, got 1e-40",
            "second derivative of log_probs, by classes": "RuntimeError: log-probabilities of classes that are spread "
            "over processes have no second derivative",
        }


def test_a_process_outside_of_the_mesh_is_told_so(four_ranks: list[dict[str, Any]]) -> None:
    told = "RuntimeError: this process is not in the mesh of the DTensors, of ranks [0, 1]"
    assert [rank["outside"] for rank in four_ranks] == ["none", "none", told, told]


def test_a_plain_call_imports_nothing_of_torch_distributed_tensor() -> None:
    lines = (
        "import sys, torch",
        "from charlm import ops",
        "ops.cross_entropy(torch.nn.Parameter(torch.zeros(2, 3)), torch.tensor([0, 1])).backward()",
        "print({'charlm.distributed', 'torch.distributed.tensor'} & set(sys.modules))",
    )
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
