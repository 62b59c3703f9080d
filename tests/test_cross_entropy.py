"""cross_entropy against the reference: every combination of options, every layout, the edge results of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import (
    ALL_LOSS_OPTIONS,
    DTYPES,
    INTEGER_DTYPES,
    LOGITS_SHAPES,
    LOSS_OPTIONS,
    REDUCTIONS,
    TARGETS,
    check,
    cross_entropy_sample,
    device,
    evaluate,
    integers,
    minus_infinity_sample,
    names_of,
    normal,
    same_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from charlm import ops

# What goes the way of calls without options: over few classes on the CPU, and on a GPU.
WEIGHTED: dict[str, Any] = {"token_weighted": True, "weighted": True, "z_loss": 0.01}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LOGITS_SHAPES)
def test_every_shape_in_every_dtype(shape: tuple[int, ...], dtype: torch.dtype, instruction_set: str) -> None:
    check(cross_entropy_sample(*shape, dtype=dtype))
    check(cross_entropy_sample(*shape, dtype=dtype, targets="ignored", **WEIGHTED))
    check(cross_entropy_sample(*shape, dtype=dtype, targets="ignored", **ALL_LOSS_OPTIONS))


@pytest.mark.parametrize("options", [{}, WEIGHTED, ALL_LOSS_OPTIONS], ids=names_of)
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_of_many_classes(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """On a GPU several blocks share each of them."""
    check(cross_entropy_sample(3, 40009, dtype=dtype, targets="ignored", **options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 27), (1, 1), (7, 27), (7, 33), (5, 5003), (515, 65)])
def test_probabilities_in_every_dtype(shape: tuple[int, ...], dtype: torch.dtype, instruction_set: str) -> None:
    check(cross_entropy_sample(*shape, dtype=dtype, targets="probabilities"))
    check(cross_entropy_sample(*shape, dtype=dtype, targets="probabilities", **ALL_LOSS_OPTIONS))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=names_of)
def test_every_combination_of_options(
    options: dict[str, Any], reduction: str, targets: str, instruction_set: str
) -> None:
    for dtype in (torch.float64, torch.float32):
        check(cross_entropy_sample(9, 29, dtype=dtype, targets=targets, reduction=reduction, **options))


@pytest.mark.parametrize("shape", [(7,), (1,), (3, 7, 5), (3, 7, 5, 2), (2, 7, 3, 1, 4), (0, 7, 5), (3, 7, 0)])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_any_trailing_dimensions(reduction: str, targets: str, shape: tuple[int, ...]) -> None:
    check(cross_entropy_sample(*shape, targets=targets, reduction=reduction))
    check(cross_entropy_sample(*shape, targets=targets, reduction=reduction, **ALL_LOSS_OPTIONS))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), id="transposed"),
        pytest.param(lambda x: torch.cat([x, x], 1)[:, 3 : 3 + x.shape[1]], id="class slice"),
        pytest.param(lambda x: torch.stack([x, x], -1)[..., 1], id="stride two"),
        pytest.param(lambda x: torch.cat([x, x])[::2], id="row step"),
        pytest.param(lambda x: x[:1].expand_as(x), id="expanded rows"),
        pytest.param(lambda x: x[:, :1].expand_as(x), id="expanded classes"),
    ],
)
def test_any_strides(view: Callable[[Tensor], Tensor], dtype: torch.dtype, targets: str) -> None:
    for shape in ((6, 29), (4, 6, 5)):
        sample = cross_entropy_sample(*shape, dtype=dtype, targets=targets, weighted=True)
        logits, target, weight = (sample.arguments[name] for name in ("input", "target", "weight"))
        viewed = {"input": view(logits), "weight": torch.stack([weight, weight], 1)[:, 0]}
        check(sample.with_arguments(**viewed))
        check(
            sample.with_arguments(target=view(target) if targets == "probabilities" else target[:1].expand_as(target))
        )
        check(sample.with_arguments(target=torch.stack([target, target], -1)[..., 0], **viewed))


@pytest.mark.parametrize("integer", INTEGER_DTYPES)
def test_every_integer_dtype(integer: torch.dtype) -> None:
    sample = cross_entropy_sample(9, 27, targets="ignored", weighted=True, ignore_index=3)
    expected = evaluate(sample)
    actual = evaluate(sample.with_arguments(target=sample.arguments["target"].to(integer)))
    for name, value in expected.items():
        assert same_bits(actual[name], value), name


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 26, 27, 255, -(2**40)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_any_ignore_index(reduction: str, ignore_index: int) -> None:
    check(cross_entropy_sample(9, 27, targets="ignored", ignore_index=ignore_index, reduction=reduction))


def test_ignore_index_255_of_unsigned_bytes() -> None:
    sample = cross_entropy_sample(9, 27, targets="ignored", ignore_index=255)
    check(sample.with_arguments(target=sample.arguments["target"].to(torch.uint8)))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("options", [{}, ALL_LOSS_OPTIONS], ids=names_of)
def test_plain_options_are_those_of_torch(options: dict[str, Any], targets: str) -> None:
    sample = cross_entropy_sample(9, 27, targets=targets)
    logits, target = sample.arguments["input"], sample.arguments["target"]
    weight = torch.rand(27, dtype=torch.float64, device=device)
    torch.testing.assert_close(ops.cross_entropy(logits, target, weight), F.cross_entropy(logits, target, weight))
    torch.testing.assert_close(
        ops.cross_entropy(logits, target, weight, -100, "sum", 0.2),
        F.cross_entropy(logits, target, weight, ignore_index=-100, reduction="sum", label_smoothing=0.2),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 27), (3, 5003)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_logits_of_ten_thousand(
    reduction: str, shape: tuple[int, int], dtype: torch.dtype, instruction_set: str
) -> None:
    logits = torch.full(shape, -1e4, dtype=dtype, device=device)
    logits[0] = 1e4
    logits[1, 3] = 1e4
    logits[2, ::2] = 1e4
    sample = cross_entropy_sample(*shape, dtype=dtype, reduction=reduction)
    check(sample.with_arguments(input=logits))
    for targets in TARGETS:
        check(cross_entropy_sample(*shape, dtype=dtype, targets=targets, scale=1e4, reduction=reduction))

    target = torch.full((shape[0],), 3, device=device)
    losses = ops.cross_entropy(logits, target, reduction="none").tolist()
    expected = [math.log(shape[1]), 0.0, 2e4 + math.log((shape[1] + 1) // 2)]
    assert losses[:3] == pytest.approx(expected, rel=float(torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_logits_that_all_lie_far_from_zero(
    offset: float, targets: str, dtype: torch.dtype, instruction_set: str
) -> None:
    """An offset common to a row changes nothing but the rounding of the logits."""
    sample = cross_entropy_sample(7, 27, targets=targets, reduction="none")
    logits = (sample.arguments["input"] + offset).to(dtype)
    check(sample.to(dtype).with_arguments(input=logits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_minus_infinity_logits(label_smoothing: float, targets: str, dtype: torch.dtype, instruction_set: str) -> None:
    sample = minus_infinity_sample(37, dtype=dtype, targets=targets, label_smoothing=label_smoothing)
    if targets == "indices":
        losses = ops.cross_entropy(sample.arguments["input"], sample.arguments["target"], reduction="none")
        assert losses[1] == 0.0
        assert losses[2] == torch.inf
        assert losses[3].isnan()
    check(sample)
    check(sample.with_arguments(softcap=3.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 17, 36])
def test_nan_and_infinity_stay_in_their_row(column: int, dtype: torch.dtype, bad: float, instruction_set: str) -> None:
    sample = cross_entropy_sample(5, 37, dtype=dtype, reduction="none")
    logits = sample.arguments["input"].clone()
    logits[2, column] = bad
    values = evaluate(sample.with_arguments(input=logits))
    assert values["result"].isnan().tolist() == [False, False, True, False, False]
    assert values["gradient of input"].isnan().any(dim=1).tolist() == [False, False, True, False, False]
    check(sample.with_arguments(input=logits))


@pytest.mark.cpu
def test_threads_have_memory_of_their_own(threads: None) -> None:
    """Of classes that do not lie side by side each has copies, for long enough to be in the middle of one."""
    logits = normal(5003, 1000, dtype=torch.float32).t().requires_grad_()
    target = integers(5003, (1000,))
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        loss = ops.cross_entropy(logits, target, reduction="none")
        found.append([loss, *torch.autograd.grad(loss.sum(), logits)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("classes", [27, 100])
def test_nan_is_nan_whatever_its_other_bits(classes: int, softcap: float | None, instruction_set: str) -> None:
    """Some programs tell by them what is missing. There are rows enough for whole vectors of them."""
    logits = cross_entropy_sample(20, classes, dtype=torch.float32).arguments["input"].clone()
    logits[2, 5] = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32)
    sample = cross_entropy_sample(20, classes, dtype=torch.float32, reduction="none", softcap=softcap)
    values = evaluate(sample.with_arguments(input=logits))
    only_row_2 = [row == 2 for row in range(20)]
    assert values["result"].isnan().tolist() == only_row_2
    assert values["gradient of input"].isnan().any(dim=1).tolist() == only_row_2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@pytest.mark.parametrize("shape", [(0, 27), (0, 27, 4), (3, 27, 0)])
def test_no_rows(shape: tuple[int, ...], targets: str, reduction: str) -> None:
    values = evaluate(cross_entropy_sample(*shape, targets=targets, reduction=reduction))
    assert values["result"].isnan() if reduction == "mean" else values["result"] == 0.0
    assert values["gradient of input"].shape == shape


@pytest.mark.parametrize("options", [{}, ALL_LOSS_OPTIONS], ids=names_of)
def test_all_rows_ignored(options: dict[str, Any]) -> None:
    for reduction, is_expected in [
        ("mean", lambda x: x.isnan()),
        ("sum", lambda x: x == 0.0),
        ("none", lambda x: (x == 0.0).all()),
    ]:
        sample = cross_entropy_sample(6, 27, reduction=reduction, **options)
        ignored = sample.with_arguments(target=torch.full((6,), -100, device=device))
        assert is_expected(evaluate(ignored)["result"]), reduction
        check(ignored)


def test_weights_of_zero_leave_nothing_to_divide_by() -> None:
    sample = cross_entropy_sample(4, 5)
    target = torch.tensor([2, 2, 2, 2], device=device)
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64, device=device)
    zero = sample.with_arguments(target=target, weight=weight)
    assert evaluate(zero)["result"].isnan()
    check(zero.with_arguments(reduction="sum"))
    check(zero.with_arguments(target=torch.tensor([2, 1, 2, 0], device=device)))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=names_of)
def test_gradcheck(options: dict[str, Any], reduction: str, targets: str) -> None:
    sample = cross_entropy_sample(4, 3, targets=targets, reduction=reduction, scale=1.0, **options)
    leaves = sample.leaves()

    def op(*values: Tensor) -> Tensor:
        return sample.call(ops.cross_entropy, dict(zip(leaves, values, strict=True)))

    # In one direction on a GPU: the slow way is the same there, and a simulator takes minutes.
    assert torch.autograd.gradcheck(op, tuple(leaves.values()), fast_mode=cases.on_cuda)


def test_softcap_bounds_the_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.float64, device=device)
    capped = ops.cross_entropy(logits, torch.tensor([1], device=device), softcap=1.0)
    assert capped.item() == pytest.approx(math.log(math.e + 1 / math.e + 1.0) + 1.0, rel=1e-14)


def test_z_loss_shares_the_denominator_of_the_mean() -> None:
    logits, target = normal(4, 3), torch.tensor([0, -100, 2, 2], device=device)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, device=device)
    plain = F.cross_entropy(logits, target, weight)
    penalty = 0.1 * logits.logsumexp(1)[[0, 2, 3]].square().sum() / 4.5
    torch.testing.assert_close(ops.cross_entropy(logits, target, weight, z_loss=0.1), plain + penalty)


@settings(max_examples=120)
@given(data=st.data())
def test_any_shape_dtype_layout_and_options(data: st.DataObject) -> None:
    rows, vocab_size = data.draw(st.integers(0, 40), "rows"), data.draw(st.integers(1, 70), "V")
    trailing = tuple(data.draw(st.lists(st.integers(1, 4), max_size=2), "trailing"))
    sample = cross_entropy_sample(
        rows,
        vocab_size,
        *trailing,
        dtype=data.draw(st.sampled_from(DTYPES), "dtype"),
        targets=data.draw(st.sampled_from(TARGETS), "targets"),
        weighted=data.draw(st.booleans(), "weighted"),
        scale=data.draw(st.sampled_from([0.1, 3.0, 100.0]), "scale"),
        seed=data.draw(st.integers(0, 1000), "seed"),
        reduction=data.draw(st.sampled_from(REDUCTIONS), "reduction"),
        label_smoothing=data.draw(st.sampled_from([0.0, 0.1, 1.0]), "label_smoothing"),
        softcap=data.draw(st.sampled_from([None, 0.5, 30.0]), "softcap"),
        z_loss=data.draw(st.sampled_from([0.0, 1e-3]), "z_loss"),
    )
    order = data.draw(st.permutations(range(2 + len(trailing))), "memory order")
    inverse = sorted(range(len(order)), key=order.__getitem__)
    check(sample.with_arguments(input=sample.arguments["input"].permute(order).contiguous().permute(inverse)))


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 27), (5, 600), (3, 70, 2)], ids=str)
def test_a_gradient_in_half_precision_is_rounded_to_the_nearest(
    shape: tuple[int, ...], dtype: torch.dtype, instruction_set: str
) -> None:
    """Vectors and single values alike: what float32 has of the same logits is at most half a unit away."""
    logits = normal(*shape, dtype=dtype)
    target = integers(shape[1], (shape[0], *shape[2:]))

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(ops.cross_entropy(x, target, reduction="sum"), x)[0]

    exact = gradient(logits.float()).double()
    half_unit = torch.finfo(dtype).eps / 2
    assert ((gradient(logits).double() - exact).abs() <= 1.01 * half_unit * exact.abs() + 1e-7).all()
