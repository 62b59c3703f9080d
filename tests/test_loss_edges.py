"""Where a loss has one right answer that rounding, a default or a range may miss: as torch, and exactly."""

from __future__ import annotations

import re
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPES,
    REDUCTIONS,
    Sample,
    check,
    cross_entropy_sample,
    device,
    evaluate,
    integers,
    linear_cross_entropy_sample,
    mlp_cross_entropy_sample,
    normal,
)
from engine_runs import make_batches, make_bigram, make_run
from torch import Tensor

from charlm import engine, ops
from charlm.ops import reference

SMOOTHING: list[dict[str, Any]] = [
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "weighted": True},
    {"targets": "probabilities"},
    {"targets": "probabilities", "label_smoothing": 0.1, "weighted": True, "softcap": 30.0, "z_loss": 1e-4},
]


@pytest.mark.parametrize("namespace", [ops, reference], ids=["ops", "reference"])
def test_probabilities_have_no_class_to_ignore(namespace: Any) -> None:
    for z_loss in (0.0, 0.1):
        for sample in (cross_entropy_sample(5, 3, targets="probabilities"),):
            bad = sample.with_arguments(ignore_index=0, z_loss=z_loss)
            with pytest.raises((ValueError, RuntimeError), match="ignore_index is not supported"):
                bad.call(getattr(namespace, sample.op), {})
        sample = linear_cross_entropy_sample(5, 3, 4, targets="probabilities").with_arguments(ignore_index=2)
        with pytest.raises(ValueError, match="ignore_index must be None where target has class probabilities"):
            sample.call(getattr(namespace, sample.op), {})
    check(cross_entropy_sample(5, 3, targets="probabilities", ignore_index=-1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_row_and_its_class_in_a_vector(reduction: str) -> None:
    for weighted in (False, True):
        sample = cross_entropy_sample(5, weighted=weighted, reduction=reduction)
        sample = sample.with_arguments(target=sample.arguments["target"].reshape(1))
        check(sample)
        check(sample.with_arguments(token_weights=torch.tensor(-0.75, device=device)))
        ours, torchs = (sample.call(function, {}) for function in (ops.cross_entropy, F.cross_entropy))
        torch.testing.assert_close(ours, torchs)  # whose backward fails
        check(sample.with_arguments(label_smoothing=0.1))
        check(sample.with_arguments(target=torch.tensor([-100], device=device)))
    sample = linear_cross_entropy_sample((), 3, 4, token_weighted=True, reduction=reduction)
    check(sample.with_arguments(target=sample.arguments["target"].reshape(1)))
    for size in (0, 2):
        with pytest.raises(ValueError, match=r"target must have .*got \(" + str(size)):
            ops.cross_entropy(normal(5), torch.zeros(size, dtype=torch.int64, device=device))


def one_class(op: str, dtype: torch.dtype, **options: Any) -> Sample:
    if op == "cross_entropy":
        return cross_entropy_sample(103, 1, dtype=dtype, scale=9.0, **options)
    if op == "linear_cross_entropy":
        return linear_cross_entropy_sample(103, 7, 1, dtype=dtype, **options)
    return mlp_cross_entropy_sample(103, 3, 1, 4, 9, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy", "mlp_cross_entropy"])
def test_one_class_has_no_loss_and_no_gradient(op: str, dtype: torch.dtype) -> None:
    for options in ({}, {"weighted": True}, {"token_weighted": True}, *SMOOTHING[:3], {"softcap": 3.0}):
        for reduction in REDUCTIONS:
            sample = one_class(op, dtype, **options).with_arguments(reduction=reduction)
            for name, value in evaluate(sample).items():
                assert torch.equal(value, torch.zeros_like(value)), f"{name} of {op} with {options}"
    if op != "mlp_cross_entropy":
        check(one_class(op, dtype, z_loss=0.1, softcap=5.0))
        check(one_class(op, dtype, token_weighted=True, targets="ignored", z_loss=0.1))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_one_class_whose_logit_is_no_number(value: float) -> None:
    sample = cross_entropy_sample(1, 1).with_arguments(input=torch.full((1, 1), value, device=device))
    check(sample)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_on_one_class_changes_nothing(dtype: torch.dtype) -> None:
    for run in (make_run((1, 3, 4, 9), dtype, direct=True), make_bigram(1, dtype)):
        before = [parameter.detach().clone() for parameter in run.parameters]
        losses = run.fused(*make_batches(3, 40))
        assert torch.equal(losses, torch.zeros_like(losses))
        assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("softcap", 1e-46),
        ("softcap", 1e-40),
        ("softcap", 1e39),
        ("z_loss", 1e-46),
        ("z_loss", 1e39),
        ("label_smoothing", 1e-46),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_option_that_float32_cannot_hold(dtype: torch.dtype, name: str, value: float, op: str) -> None:
    make = cross_entropy_sample if op == "cross_entropy" else linear_cross_entropy_sample
    for namespace in (ops, reference):
        with pytest.raises(ValueError, match=rf"{name} must be between .* in float32, got {re.escape(str(value))}"):
            make(5, 27, dtype=dtype, **{name: value}).call(getattr(namespace, op), {})
    if abs(value) < 1:  # float64 holds it
        assert make(5, 27, **{name: value}).call(getattr(ops, op), {}).isfinite()


def test_a_cap_of_a_whole_model_that_float32_cannot_hold() -> None:
    for softcap in (1e-46, 1e39):
        sample = mlp_cross_entropy_sample(5, dtype=torch.float32, softcap=softcap)
        with pytest.raises(ValueError, match=r"softcap must be between .* in float32"):
            sample.call(ops.mlp_cross_entropy, {})


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("options", "rate", "message"),
    [
        ({"weight_decay": 1e-46}, 0.1, "weight_decay must be between .* in float32, got 1e-46"),
        ({"momentum": 1e-46}, 0.1, "momentum must be between .* in float32, got 1e-46"),
        ({"max_grad_norm": 1e-46}, 0.1, "max_grad_norm must be between .* in float32, got 1e-46"),
        ({"max_grad_norm": 1e39}, 0.1, r"max_grad_norm must be between .* in float32, got 1e\+39"),
        ({"optimizer": "adamw", "eps": 1e-46}, 0.1, "eps must be between .* in float32, got 1e-46"),
        ({"optimizer": "adamw", "betas": (1e-46, 0.9)}, 0.1, "beta1 must be between .* in float32, got 1e-46"),
        ({"optimizer": "adamw", "betas": (0.9, 1 - 1e-12)}, 0.1, "beta2 must be less than 1 in float32, got 0.99999"),
        ({}, 1e39, r"learning_rates\[1\] must be between .* in float32, got 1e\+39"),
        ({}, 1e-46, r"learning_rates\[1\] must be between .* in float32, got 1e-46"),
    ],
)
def test_a_training_option_that_float32_cannot_hold(options: dict[str, Any], rate: float, message: str) -> None:
    run = make_run((27, 3, 4, 9), torch.float32, **options)
    before = [parameter.detach().clone() for parameter in run.parameters]
    batches, _ = make_batches(2, 5)
    rates = torch.tensor([0.1, rate], dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        run.fused(batches, rates)
    with pytest.raises(ValueError, match=message):
        engine.train_full_steps(run.parameters, run.new_state(), *run.counts(), rates, **run.options)
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def error_of(loss: Tensor, truth: Tensor) -> float:
    return float(((loss.double() - truth).abs() / truth.abs()).max())


@pytest.mark.cpu
@pytest.mark.parametrize("classes", [8192, 32768, 50257, 262144])
@pytest.mark.parametrize("options", SMOOTHING, ids=cases.names_of)
def test_long_rows_lose_no_digits(classes: int, options: dict[str, Any], instruction_set: str) -> None:
    uniform = torch.full((1, classes), 1 / classes)
    inexact = torch.full((1, classes), 0.55)  # exponentials that are equal, and of which no sum is exact
    inexact[0, 0] = 1.0
    for logits in (torch.zeros(1, classes), torch.full((1, classes), 0.3), inexact, 3 * torch.randn(1, classes)):
        sample = cross_entropy_sample(1, classes, dtype=torch.float32, **options).with_arguments(input=logits)
        if "targets" in options:
            sample = sample.with_arguments(target=uniform)
        exact = sample.to(torch.float64).call(reference.cross_entropy, {})
        # Of the sum that is never exact, torch loses digits.
        torchs = 0.0 if logits is inexact else error_of(sample.call(reference.cross_entropy, {}), exact)
        assert error_of(sample.call(ops.cross_entropy, {}), exact) <= torchs + 2.0**-22


@pytest.mark.cpu
def test_long_rows_of_an_output_layer_lose_no_digits() -> None:
    weight, bias = torch.zeros(262144, 4), torch.full((262144,), 0.3)
    for rows in (3, 5):  # the two ways to bound memory
        arguments = (torch.ones(rows, 4), weight.requires_grad_(), integers(262144, (rows,)))
        loss = ops.linear_cross_entropy(*arguments, linear_bias=bias, label_smoothing=0.1)
        exact = torch.tensor(262144.0, dtype=torch.float64).log()
        assert error_of(loss.detach(), exact) <= 2.0**-22


@pytest.mark.parametrize("retain", [False, True])
def test_the_gradient_of_one_row_in_a_vector(retain: bool) -> None:
    sample = cross_entropy_sample(5, targets="indices")
    for target in (sample.arguments["target"], sample.arguments["target"].reshape(1)):
        logits = sample.arguments["input"].clone().requires_grad_()
        expected = torch.autograd.grad(F.cross_entropy(logits, target.squeeze()), logits)
        found = torch.autograd.grad(ops.cross_entropy(logits, target), logits, retain_graph=retain)
        torch.testing.assert_close(found, expected)
