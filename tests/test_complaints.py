"""What users of other fused losses complain about, one test a complaint, named after it.

Two kinds are held elsewhere: that installing fails, in tests/test_package.py, and that a fused loss is slower than
torch.compile (Liger-Kernel #227), which only a measurement can say: benchmarks/.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import device, integers, normal, same_bits
from torch import Tensor

from charlm import ops

ROWS, FEATURES, CLASSES = 23, 6, 11

Loss = Callable[..., Tensor]


def cross_entropy(input: Tensor, layer: Tensor, target: Tensor, **options: Any) -> Tensor:
    return ops.cross_entropy(input @ layer.T, target, **options)


def linear_cross_entropy(input: Tensor, layer: Tensor, target: Tensor, **options: Any) -> Tensor:
    return ops.linear_cross_entropy(input, layer, target, **options)


def torchs(input: Tensor, layer: Tensor, target: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(input @ layer.T, target, **options)


both_losses = pytest.mark.parametrize("loss", [cross_entropy, linear_cross_entropy], ids=lambda loss: loss.__name__)


def arguments(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    input = normal(ROWS, FEATURES, dtype=dtype, seed=1).requires_grad_()
    weight = normal(CLASSES, FEATURES, dtype=dtype, seed=2).requires_grad_()
    target = integers(CLASSES, (ROWS,), seed=3)
    target[::4] = -100
    return input, weight, target


def gradients(value: Tensor, *leaves: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, leaves, **options)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_logits_are_overwritten_and_upstream_gradients_silently_wrong() -> None:
    """Liger-Kernel #272, #343; unsloth #5002: the loss writes its gradient into the logits that others still need."""
    input, weight, target = arguments()

    def total(loss: Loss) -> Tensor:
        logits = input @ weight.T
        before = logits.detach().clone()
        squared = logits.square()  # its backward reads the logits
        value = loss(logits, target) + squared.mean() + logits.logsumexp(1).sum()
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert same_bits(logits.detach(), before)
        assert gradient.data_ptr() != logits.data_ptr()
        return value

    close(gradients(total(ops.cross_entropy), input, weight), gradients(total(F.cross_entropy), input, weight))


@both_losses
def test_reduction_none_has_wrong_or_zero_gradients(loss: Loss) -> None:
    """Liger-Kernel #678, #968."""
    input, weight, target = arguments()
    upstream = normal(ROWS, seed=4)
    ours, expected = (f(input, weight, target, reduction="none") for f in (loss, torchs))
    close(ours, expected)
    found = gradients(ours, input, weight, grad_outputs=upstream)
    assert all(gradient.abs().sum() > 0.0 for gradient in found)
    close(found, gradients(expected, input, weight, grad_outputs=upstream))


@both_losses
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_retained_graph_gives_other_gradients_the_second_time(loss: Loss, reduction: str) -> None:
    """quack pull request 209."""
    input, weight, target = arguments()
    value = loss(input, weight, target, reduction=reduction).sum()
    expected = gradients(torchs(input, weight, target, reduction=reduction).sum(), input, weight)
    for factor in (1.0, 3.0, 1.0):
        found = gradients(factor * value, input, weight, retain_graph=True)
        close(found, tuple(factor * gradient for gradient in expected))


@both_losses
def test_wrong_loss_under_torch_compile_with_ignored_rows(loss: Loss) -> None:
    """Liger-Kernel pull request 1338."""
    torch.compiler.reset()
    input, weight, target = arguments()
    compiled: Any = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ignored in (target, torch.where(target == 5, -100, target)):
        ours, expected = compiled(input, weight, ignored), torchs(input, weight, ignored)
        close(ours, expected)
        close(gradients(ours, input, weight), gradients(expected, input, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_accumulation_in_half_precision_diverges(dtype: torch.dtype) -> None:
    """Liger-Kernel #512, #827; ml-cross-entropy #14: sums over many rows are kept in the dtype of the weights."""
    rows = 4099
    input, weight = (normal(*shape, dtype=dtype, seed=5) for shape in ((rows, FEATURES), (CLASSES, FEATURES)))
    target = integers(CLASSES, (rows,), seed=6)
    leaves = [tensor.requires_grad_() for tensor in (input, weight)]
    wide = [tensor.detach().double().requires_grad_() for tensor in leaves]
    ours = ops.linear_cross_entropy(*leaves, target, reduction="sum" if dtype == torch.bfloat16 else "mean")
    true = torchs(*wide, target, reduction="sum" if dtype == torch.bfloat16 else "mean")
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), true, rtol=rounding, atol=0.0)
    found, expected = gradients(ours, *leaves)[1].double(), gradients(true, *wide)[1]
    torch.testing.assert_close(found, expected, rtol=2 * rounding, atol=rounding * float(expected.abs().max()))


@both_losses
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_targets_ignored(loss: Loss, reduction: str) -> None:
    """Liger-Kernel #177, torchtune #2341: a division by zero. PyTorch defines the mean as NaN: pytorch #70348."""
    input, weight, target = arguments()
    target = torch.full_like(target, -100)
    ours, expected = (f(input, weight, target, reduction=reduction) for f in (loss, torchs))
    torch.testing.assert_close(ours, expected, equal_nan=True)
    assert ours.isnan().all() == (reduction == "mean")
    if reduction != "mean":
        assert all(not gradient.any() for gradient in gradients(ours.sum(), input, weight))


def test_bias_is_missing_or_added_repeatedly() -> None:
    """ml-cross-entropy #52. In either way to bound the memory, with several chunks or blocks."""
    for rows, features, classes in ((ROWS, FEATURES, CLASSES), (515, 3, 27), (7, 31, 2003)):
        leaves = [
            normal(*shape, seed=7).requires_grad_() for shape in ((rows, features), (classes, features), (classes,))
        ]
        target = integers(classes, (rows,), seed=8)
        ours = ops.linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2])
        expected = F.cross_entropy(F.linear(*leaves), target)
        close(ours, expected)
        close(gradients(ours, *leaves), gradients(expected, *leaves))


@pytest.mark.vast
def test_more_than_2_to_31_elements() -> None:
    """pytorch #85786, #90793; ml-cross-entropy #37: indices overflow. Rows share memory here, 2.1 GB are not needed."""
    rows, classes = 2**15 + 1, 2**16
    row = normal(1, classes, dtype=torch.float32, seed=8)
    logits = row.expand(rows, classes)
    assert logits.numel() > 2**31
    target = torch.full((rows,), 3, device=device)
    target[-1] = classes - 1
    losses = ops.cross_entropy(logits, target, reduction="none")
    expected = F.cross_entropy(row.expand(2, classes), target[-2:], reduction="none")
    torch.testing.assert_close(losses, torch.cat([expected[:1].expand(rows - 1), expected[1:]]))


def test_offsets_beyond_2_to_31_elements() -> None:
    """The same complaint for strides: rows so far apart that memory in between is never touched."""
    stride = 2**30 + 5
    memory = torch.empty(2 * stride + CLASSES, dtype=torch.bfloat16, device=device)
    logits = memory.as_strided((3, CLASSES), (stride, 1))
    logits.copy_(normal(3, CLASSES, dtype=torch.bfloat16, seed=9))
    target = torch.tensor([1, 0, 7], device=device)
    dense = logits.clone()
    assert same_bits(ops.cross_entropy(logits, target), ops.cross_entropy(dense, target))
    torch.testing.assert_close(ops.cross_entropy(logits, target), F.cross_entropy(dense.float(), target).bfloat16())


@both_losses
def test_launch_limit_at_a_large_vocabulary(loss: Loss) -> None:
    """unsloth #19: more than 65,536 classes."""
    classes = 200_003
    input, weight = normal(3, 2, seed=10).requires_grad_(), normal(classes, 2, seed=11).requires_grad_()
    target = torch.tensor([0, classes - 1, 65_536], device=device)
    ours, expected = (f(input, weight, target) for f in (loss, torchs))
    close(ours, expected)
    close(gradients(ours, input, weight), gradients(expected, input, weight))


@both_losses
@pytest.mark.parametrize("wrong", [CLASSES, -1, 2**40])
def test_an_out_of_range_target_is_not_noticed(loss: Loss, wrong: int) -> None:
    """pytorch #18014, #49882."""
    input, weight, target = arguments()
    target[6] = wrong
    if cases.on_cuda:  # where nothing waits for the GPU to tell: see tests/out_of_range.py
        losses = loss(input, weight, target, reduction="none")
        assert losses.isnan().nonzero().tolist() == [[6]]
        return
    with pytest.raises(IndexError, match=rf"target\[6\] = {wrong} is out of range for {CLASSES} classes"):
        loss(input, weight, target)


@both_losses
@pytest.mark.parametrize("ignore_index", [-100, 2, -1])
def test_ignore_index_with_class_weights_and_smoothing(loss: Loss, ignore_index: int) -> None:
    """pytorch #69339, #91383, #73205: ignored rows leak into the smoothing term or into the mean's denominator."""
    input, weight, target = arguments()
    target = torch.where(target == -100, ignore_index, target)
    class_weight = torch.rand(CLASSES, dtype=torch.float64, device=device) + 0.5
    ours = loss(input, weight, target, ignore_index=ignore_index, weight=class_weight, label_smoothing=0.3)
    log_probabilities = (input @ weight.T).log_softmax(1)
    total, denominator = torch.zeros((), dtype=torch.float64, device=device), 0.0
    for row, wanted in zip(log_probabilities, target.tolist(), strict=True):
        if wanted != ignore_index:
            smooth = -(class_weight * row).sum() / CLASSES
            total = total - 0.7 * class_weight[wanted] * row[wanted] + 0.3 * smooth
            denominator += class_weight[wanted].item()
    expected = total / denominator
    close(ours, expected)
    close(gradients(ours, input, weight), gradients(expected, input, weight))


@pytest.mark.cpu
@both_losses
def test_there_is_no_cpu_path(loss: Loss) -> None:
    """ModernBERT #152: kernels in Triton run on GPUs only."""
    input, weight, target = arguments(torch.float32)
    value = loss(input, weight, target)
    assert value.is_cpu
    torch.testing.assert_close(value, torchs(input, weight, target))
    torch.testing.assert_close(gradients(value, input, weight), gradients(torchs(input, weight, target), input, weight))


@both_losses
def test_tokens_cannot_have_weights_of_their_own(loss: Loss) -> None:
    """Liger-Kernel #338."""
    input, weight, target = arguments()
    token_weights = torch.rand(ROWS, dtype=torch.float64, device=device, requires_grad=True)

    def total(of: Loss) -> Tensor:
        return (token_weights * of(input, weight, target, reduction="none")).sum() / token_weights.sum()

    close(total(loss), total(torchs))
    leaves = (input, weight, token_weights)
    close(gradients(total(loss), *leaves), gradients(total(torchs), *leaves))
