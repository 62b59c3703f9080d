"""CUDA's kernels at what is special about them: each change in how a problem is cut, and every order of threads.

What every device must do is in the files of the ops.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import out_of_range
import pytest
import torch
from cases import (
    ACTIVATIONS,
    ALL_LOG_PROBS_OPTIONS,
    ALL_LOSS_OPTIONS,
    DTYPES,
    LOSS_OPTIONS,
    REDUCTIONS,
    TARGETS,
    Sample,
    check,
    cross_entropy_sample,
    device,
    embedding_linear_sample,
    evaluate,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    minus_infinity_sample,
    mlp_cross_entropy_sample,
    names_of,
    normal,
    same_bits,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from charlm import _C, ops

pytestmark = pytest.mark.cuda


def unaligned(tensor: Tensor) -> Tensor:
    """The same values where vectors of 16 bytes do not begin."""
    return torch.cat([tensor.flatten(), tensor.flatten()])[3 : 3 + tensor.numel()].view(tensor.shape)


# cross_entropy: rows on both sides of 512 classes, and that are whole vectors of 16 bytes or not (registers or shared
# memory); a part of a warp and more for a row, and of 32,768 (several blocks for a row); many rows of strided classes.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 511), (5, 512), (5, 513), (3, 4096), (2, 9001), (1, 32769), (300, 520)])
def test_losses_of_every_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(cross_entropy_sample(*shape, dtype=dtype))
    check(cross_entropy_sample(*shape, dtype=dtype, targets="ignored", token_weighted=True))
    check(cross_entropy_sample(*shape, dtype=dtype, targets="ignored", **ALL_LOSS_OPTIONS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 601), (1, 33001)])
def test_losses_of_probabilities(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(cross_entropy_sample(*shape, dtype=dtype, targets="probabilities"))
    check(cross_entropy_sample(*shape, dtype=dtype, targets="probabilities", token_weighted=True))
    check(cross_entropy_sample(*shape, dtype=dtype, targets="probabilities", **ALL_LOSS_OPTIONS))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=names_of)
def test_losses_of_wide_rows_with_every_option(options: dict[str, Any], reduction: str, targets: str) -> None:
    check(cross_entropy_sample(9, 530, dtype=torch.float32, targets=targets, reduction=reduction, **options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(9, 27), (5, 600), (2, 33000), (3, 7, 5)])
def test_losses_with_their_gradient(
    shape: tuple[int, ...], reduction: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call, which the op makes on the CPU only: on a GPU the loss of a linear layer goes this way."""
    module = importlib.import_module("charlm.ops.cross_entropy")
    monkeypatch.setattr(module, "_gradient_in_forward", lambda *_: True)
    for options in ({}, {"token_weighted": True}, ALL_LOSS_OPTIONS):
        check(cross_entropy_sample(*shape, dtype=dtype, targets="ignored", reduction=reduction, **options))
    options = {"targets": "probabilities", "token_weighted": True, "reduction": reduction}
    check(replace(cross_entropy_sample(*shape, dtype=dtype, **options), differentiable=("input",)))


@pytest.mark.parametrize("targets", TARGETS)
def test_a_sum_of_weights_over_several_blocks(targets: str) -> None:
    """Which a mean divides the gradient by, before any loss is computed."""
    for rows in (4096, 9001):
        sample = linear_cross_entropy_sample(rows, 1, 2, dtype=torch.float32, targets=targets, token_weighted=True)
        check(replace(sample, differentiable=("input",)))


@pytest.mark.parametrize("targets", TARGETS)
def test_losses_of_many_adjacent_rows(targets: str) -> None:
    for reduction in REDUCTIONS:
        check(cross_entropy_sample(2, 90, 3, targets=targets, reduction=reduction, **ALL_LOSS_OPTIONS))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("classes", [29, 530])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), id="transposed"),
        pytest.param(lambda x: torch.cat([x, x], 1)[:, 3 : 3 + x.shape[1]], id="class slice"),
        pytest.param(lambda x: torch.stack([x, x], -1)[..., 1], id="stride two"),
        pytest.param(lambda x: torch.cat([x, x])[::2], id="row step"),
        pytest.param(unaligned, id="unaligned"),
        pytest.param(lambda x: x[:1].expand_as(x), id="expanded rows"),
        pytest.param(lambda x: x[:, :1].expand_as(x), id="expanded classes"),
    ],
)
def test_losses_of_small_values_with_any_strides(view: Callable[[Tensor], Tensor], classes: int, targets: str) -> None:
    sample = cross_entropy_sample(6, classes, dtype=torch.bfloat16, targets=targets, weighted=True)
    logits, target = sample.arguments["input"], sample.arguments["target"]
    check(sample.with_arguments(input=view(logits)))
    if targets == "probabilities":
        check(sample.with_arguments(target=view(target)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_losses_of_wide_rows_with_minus_infinity(label_smoothing: float, targets: str, dtype: torch.dtype) -> None:
    sample = minus_infinity_sample(601, dtype=dtype, targets=targets, label_smoothing=label_smoothing)
    check(sample)
    check(sample.with_arguments(softcap=3.0))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_stay_in_their_wide_row(bad: float) -> None:
    sample = cross_entropy_sample(5, 601, dtype=torch.float32, reduction="none")
    logits = sample.arguments["input"].clone()
    logits[2, 17] = bad
    values = evaluate(sample.with_arguments(input=logits))
    assert values["result"].isnan().tolist() == [False, False, True, False, False]
    assert values["gradient of input"].isnan().any(dim=1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("classes", "bad"), [(27, -1), (27, 27), (27, -(2**40)), (600, 600), (600, 2**40), (33000, -1)]
)
def test_a_target_out_of_range_makes_its_row_nan(classes: int, bad: int) -> None:
    sample = cross_entropy_sample(5, classes, dtype=torch.float32, reduction="none", weighted=True)
    target = sample.arguments["target"].clone()
    target[2] = bad
    sample = sample.with_arguments(target=target)
    values = evaluate(sample)
    assert values["result"].isnan().tolist() == [False, False, True, False, False]
    assert values["gradient of input"][2].isnan().all()

    # The other rows share a mean among themselves.
    mean = evaluate(sample.with_arguments(reduction="mean"))
    assert mean["result"].isnan()
    target = target.clone()
    target[2] = -100
    expected = evaluate(sample.with_arguments(reduction="mean", target=target))["gradient of input"]
    assert same_bits(mean["gradient of input"][[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_losses_of_wide_rows_that_are_all_ignored(reduction: str) -> None:
    sample = cross_entropy_sample(6, 600, reduction=reduction, **ALL_LOSS_OPTIONS)
    check(sample.with_arguments(target=torch.full((6,), -100, device=device)))


# Exponentials are powers of two of rounded products: what that costs grows with the logits, and is made up for.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [27, 64, 600, 33000])
@pytest.mark.parametrize("offset", [3e4, -1e6, 7e8, 2.0**30, -(2.0**30), 1e12, -3.38e38, 3.38e38])
def test_losses_of_logits_far_from_zero(offset: float, classes: int, dtype: torch.dtype) -> None:
    sample = cross_entropy_sample(3, classes, dtype=dtype)
    logits = (sample.arguments["input"].double() + offset).to(dtype)
    logits[0, ::3] = -torch.inf
    logits[1, ::2] = torch.finfo(dtype).min  # as a mask is written
    target = torch.tensor([1, 1, classes - 1], device=device)
    check(sample.with_arguments(input=logits, target=target))


@pytest.mark.parametrize("classes", [27, 64, 600])
def test_losses_of_rows_that_are_masked_as_a_whole(classes: int) -> None:
    logits = torch.full((2, classes), torch.finfo(torch.float32).min, device=device)
    sample = cross_entropy_sample(2, classes, dtype=torch.float32, reduction="none").with_arguments(input=logits)
    assert torch.allclose(evaluate(sample)["result"].cpu(), torch.tensor(float(classes)).log(), atol=1e-6)


def test_more_than_two_to_the_eighteenth_classes() -> None:
    check(cross_entropy_sample(1, 2**18 + 3, dtype=torch.bfloat16))


# embedding_linear: the table is projected, and its gradient fits into shared memory or is sorted into rows; or rows are
# gathered.

PROJECTED: dict[str, Any] = {"rows": 123, "vocab_size": 27}
SORTED: dict[str, Any] = {"rows": 700, "vocab_size": 500}
GATHERED: dict[str, Any] = {"rows": 5, "vocab_size": 400}
every_way = pytest.mark.parametrize("sizes", [PROJECTED, SORTED, GATHERED], ids=["projected", "sorted", "gathered"])


@pytest.mark.parametrize(("sizes", "way"), [(PROJECTED, "project"), (SORTED, "project"), (GATHERED, "gather")])
def test_the_way_follows_from_the_shape(sizes: dict[str, Any], way: str) -> None:
    sample = embedding_linear_sample(**sizes)
    leaves = sample.leaves()
    result = ops.embedding_linear(**{**sample.arguments, **leaves})
    assert _C.last_branch() == f"embedding_linear_forward/{way}"
    torch.autograd.grad(result.sum(), list(leaves.values()))
    assert _C.last_branch() == f"embedding_linear_backward/{way}"


# Several blocks of rows, several columns of blocks, more positions than a thread has at once, rows that vectors of 16
# bytes fit or do not, long and short runs.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (300, 3, 27, 10, 40),
        (123, 5, 9, 4, 40),
        (300, 3, 27, 0, 40),
        (260, 2, 27, 8, 64),
        (9, 2, 40, 16, 24),
        (700, 3, 200, 4, 24),
        (300, 2, 299, 3, 40),
    ],
)
def test_layers_of_every_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(embedding_linear_sample(*shape, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sorted_rows_with_every_activation(activation: str, bias: bool, dtype: torch.dtype) -> None:
    check(embedding_linear_sample(**SORTED, hidden_dim=16, dtype=dtype, bias=bias, activation=activation))


@every_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_anywhere_in_memory(dtype: torch.dtype, sizes: dict[str, Any]) -> None:
    sample = embedding_linear_sample(**sizes, embedding_dim=8, hidden_dim=16, dtype=dtype)
    for name in ("embedding", "weight", "bias"):
        values = sample.arguments[name]
        check(sample.with_arguments(**{name: unaligned(values)}))
        check(sample.with_arguments(**{name: torch.stack([values, values], -1)[..., 0]}))


@every_way
def test_one_token_in_half_of_the_rows_or_all(sizes: dict[str, Any]) -> None:
    sample = embedding_linear_sample(**sizes)
    ids = sample.arguments["ids"]
    check(sample.with_arguments(ids=torch.full_like(ids, 2)))
    half = ids.clone()
    half[: len(ids) // 2] = 2
    check(sample.with_arguments(ids=half))


@every_way
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_reaches_the_contexts_that_hold_its_token_and_no_others(activation: str, sizes: dict[str, Any]) -> None:
    sample = embedding_linear_sample(**sizes, activation=activation)
    embedding = sample.arguments["embedding"].clone()
    embedding[sample.arguments["ids"][1, 1]] = torch.nan
    result = ops.embedding_linear(**{**sample.arguments, "embedding": embedding})
    holds = (sample.arguments["ids"] == sample.arguments["ids"][1, 1]).any(1)
    assert torch.equal(result.isnan().all(1), holds)
    assert torch.equal(result.isnan().any(1), holds)


@every_way
@pytest.mark.parametrize("bad", ["vocab_size", -(2**63)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_id_out_of_range_makes_its_row_nan(activation: str, bad: int | str, sizes: dict[str, Any]) -> None:
    sample = embedding_linear_sample(**sizes, dtype=torch.float32, activation=activation)
    ids = sample.arguments["ids"].clone()
    ids[2, 1] = sizes["vocab_size"] if isinstance(bad, str) else bad
    others = torch.arange(len(ids), device=device) != 2
    leaves = sample.leaves()
    result = ops.embedding_linear(**{**sample.arguments, **leaves, "ids": ids})
    expected = evaluate(sample)["result"]
    assert result[2].isnan().all()
    assert same_bits(result[others].detach(), expected[others])

    # As if the row was not there: its own gradient, which is NaN in a model, reaches nothing.
    upstream = normal(*result.shape, dtype=torch.float32)
    upstream[2] = torch.nan
    gradients = torch.autograd.grad(result, list(leaves.values()), upstream)
    short = sample.with_arguments(ids=ids[others]).leaves()
    rest = ops.embedding_linear(**{**sample.arguments, **short, "ids": ids[others]})
    for actual, truth in zip(gradients, torch.autograd.grad(rest, list(short.values()), upstream[others]), strict=True):
        torch.testing.assert_close(actual, truth)


@every_way
def test_only_the_gradients_that_are_wanted(sizes: dict[str, Any]) -> None:
    sample = embedding_linear_sample(**sizes)
    everything = evaluate(sample)
    for name in sample.differentiable:
        leaf = sample.arguments[name].clone().requires_grad_()
        result = ops.embedding_linear(**{**sample.arguments, name: leaf})
        (gradient,) = torch.autograd.grad(result, leaf, normal(*result.shape, seed=99))
        assert same_bits(gradient, everything[f"gradient of {name}"]), name


def test_so_many_rows_that_a_thread_goes_round_more_than_once() -> None:
    check(embedding_linear_sample(4 * 1024 + 3, 1, 3, 1, 255))


# Beyond the error of rounding: twice that of the kernel, where it rounds to the other neighbour.
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 2.8e-7), (torch.bfloat16, 2 * 2**-14.8), (torch.float16, 2 * 2**-14.8)]
)
def test_tanh_of_every_magnitude(dtype: torch.dtype, error: float) -> None:
    magnitudes = 2.0 ** torch.arange(-149, 128, 0.01, dtype=torch.float64)
    special = torch.tensor([0.0, torch.inf, torch.nan], dtype=torch.float64)
    values = torch.cat([magnitudes, -magnitudes, special, -special]).to(dtype).to(device)
    ids = torch.arange(len(values), device=device)[:, None]
    weight = torch.ones(1, 1, device=device, dtype=dtype)
    result = ops.embedding_linear(ids, values[:, None], weight, activation="tanh")[:, 0].double()
    expected = values.double().tanh()
    rounding = (expected.to(dtype).double() - expected).abs()
    assert torch.equal(result.isnan(), expected.isnan())
    assert not ((result - expected).abs() > rounding + error * expected.abs()).any()


# linear_cross_entropy: chunks of 2,048 rows, unless all logits take no more than sums in float32.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [2047, 2048, 2049, 2300, 4096, 4200])
def test_chunks_of_any_length(rows: int, reduction: str, dtype: torch.dtype) -> None:
    sample = linear_cross_entropy_sample(rows, 2, 3, dtype=dtype, targets="ignored", reduction=reduction)
    ops.linear_cross_entropy(**sample.arguments)
    assert _C.last_branch() == f"linear_cross_entropy_forward/{'in_chunks' if rows > 2048 else 'at_once'}"
    check(sample)


class Products(TorchDispatchMode):
    """Notes where the products that run in it put their results, also those that an op makes."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.charlm.multiply_add):
            self.results.append(kwargs["out"] if "out" in kwargs else args[-1])
        elif func.namespace == "charlm":
            key = torch._C.DispatchKey.CUDA if device.type == "cuda" else torch._C.DispatchKey.CPU
            with self:  # which is off here
                return func.redispatch(torch._C.DispatchKeySet(key), *args, **kwargs)
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    ("trained", "count"), [(("input", "linear_weight"), 3), (("input",), 2), (("linear_weight",), 2), ((), 1)]
)
def test_a_product_for_the_logits_and_one_for_each_gradient(trained: tuple[str, ...], count: int) -> None:
    sample = linear_cross_entropy_sample(9, 5, 600, dtype=torch.bfloat16, bias=False)
    leaves = {name: sample.arguments[name].clone().requires_grad_() for name in trained}
    with Products() as products:
        loss = ops.linear_cross_entropy(**{**sample.arguments, **leaves})
        if trained:
            torch.autograd.grad(loss, list(leaves.values()))
    assert len(products.results) == count


# Whole lines of 64 elements, or, of few classes, whole vectors of 16 bytes.
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("classes", "dtype", "stride"),
    [
        (640, torch.bfloat16, 640),
        (530, torch.bfloat16, 576),
        (530, torch.float32, 576),
        (512, torch.float16, 512),
        (511, torch.bfloat16, 512),
        (27, torch.bfloat16, 32),
        (27, torch.float32, 28),
        (27, torch.float64, 28),
    ],
)
def test_rows_of_logits_begin_where_products_are_fast(
    classes: int, dtype: torch.dtype, stride: int, bias: bool
) -> None:
    sample = linear_cross_entropy_sample(9, 5, classes, dtype=dtype, bias=bias)
    with Products() as products:
        ops.linear_cross_entropy(**sample.arguments)
    (logits,) = products.results
    assert (logits.shape, logits.stride()) == ((9, classes), (stride, 1))
    check(sample)


@pytest.mark.vast
@pytest.mark.parametrize(("classes", "rows"), [(1 << 18, [1024, 76]), (1 << 20, [256, 256, 256, 256, 76])])
def test_a_chunk_takes_no_more_than_a_gibibyte(classes: int, rows: list[int]) -> None:
    sample = linear_cross_entropy_sample(1100, 1, classes, dtype=torch.float32, bias=False)
    with Products() as products:
        ops.linear_cross_entropy(**sample.arguments)
    assert [logits.shape[0] for logits in products.results] == rows


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_chunks_with_every_option(reduction: str, targets: str) -> None:
    options = {**ALL_LOSS_OPTIONS, "targets": targets, "reduction": reduction, "bias": reduction != "sum"}
    check(linear_cross_entropy_sample(2100, 2, 3, dtype=torch.float32, **options))


def test_chunks_of_wide_rows() -> None:
    check(linear_cross_entropy_sample(2050, 2, 530, dtype=torch.float32, targets="ignored", **ALL_LOSS_OPTIONS))


def test_a_weight_gradient_of_many_chunks_is_added_up_in_float32() -> None:
    """Each chunk after the first adds less than bfloat16 can add to the first's, and all of them three times as much
    as it may be wrong."""
    sample = linear_cross_entropy_sample(1, 1, 3, dtype=torch.bfloat16, reduction="sum")
    rows = 16 * 2048
    features = torch.full((rows, 1), 0.0018, dtype=torch.bfloat16, device=device)
    features[:2048] = 1.0
    check(sample.with_arguments(input=features, target=sample.arguments["target"].expand(rows)))


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_a_target_out_of_range_makes_its_row_of_a_chunk_nan(bad: int) -> None:
    sample = linear_cross_entropy_sample(2100, 2, 3, dtype=torch.float32, reduction="none")
    target = sample.arguments["target"].clone()
    target[2060] = bad
    values = evaluate(sample.with_arguments(target=target))
    expected = evaluate(sample)
    others = torch.arange(2100, device=device) != 2060
    assert torch.equal(values["result"].isnan(), ~others)
    assert torch.equal(values["gradient of input"].isnan().all(1), ~others)
    for name in ("result", "gradient of input"):
        assert same_bits(values[name][others], expected[name][others])


# log_probs: a thread, a part of a warp and more, or a block for a row; more ids than threads; classes that are not
# adjacent, or that begin between two vectors.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, ALL_LOG_PROBS_OPTIONS], ids=names_of)
@pytest.mark.parametrize(
    "shape", [(300, 27), (5, 32), (5, 511), (5, 513), (3, 1003), (3, 4096), (2, 9001), (1, 32769), (300, 520)]
)
def test_log_probs_of_every_shape(shape: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype) -> None:
    check(log_probs_sample(*shape, dtype=dtype, ids_per_row=3, ignored=True, **options))


@pytest.mark.parametrize("classes", [5, 27, 600, 5000])
def test_more_ids_than_threads(classes: int) -> None:
    check(log_probs_sample(3, classes, dtype=torch.float32, ids_per_row=600, ignored=True))


def any_view(x: Tensor) -> list[Tensor]:
    """The same numbers where vectors do not begin, and by classes."""
    return [x, unaligned(x), x.t().contiguous().t(), torch.stack([x, x], -1)[..., 1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, ALL_LOG_PROBS_OPTIONS], ids=names_of)
@pytest.mark.parametrize("shape", [(6, 29), (6, 530), (300, 40), (3, 4100)])
def test_log_probs_with_any_strides(shape: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype) -> None:
    sample = log_probs_sample(*shape, dtype=dtype, ids_per_row=2, ignored=True, **options)
    for view in any_view(sample.arguments["input"]):
        check(sample.with_arguments(input=view))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("classes", [9, 40, 300, 4500])
def test_the_first_of_the_largest_classes(classes: int, dtype: torch.dtype) -> None:
    """One thread has classes from both ends of a row, and several have the largest number."""
    logits = torch.zeros(9, classes, dtype=dtype, device=device)
    for row in range(1, 9):
        logits[row, row::row] = 1.0
    logits[8, 1] = torch.nan
    sample = log_probs_sample(9, classes, dtype=dtype)
    for view in any_view(logits):
        check(sample.with_arguments(input=view))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [27, 600, 33000])
@pytest.mark.parametrize("offset", [3e4, -1e6, 2.0**30, 1e12, -3.38e38, 3.38e38])
def test_log_probs_of_logits_far_from_zero(offset: float, classes: int, dtype: torch.dtype) -> None:
    """Without logsumexp, whose derivative torch takes from a difference of what is rounded."""
    logits = (normal(3, classes) + offset).to(dtype)
    logits[0, ::3] = -torch.inf
    logits[1, ::2] = torch.finfo(dtype).min  # as a mask is written
    ids = torch.tensor([1, 1, classes - 1], device=device)
    results = []
    for namespace, input in ((ops, logits), (ops.reference, logits.double())):
        leaf = input.clone().requires_grad_()
        log_probs, entropy, *_ = namespace.log_probs(leaf, ids, output_dtype=torch.float32)
        results.append((log_probs, entropy, *torch.autograd.grad((log_probs - 2 * entropy).sum(), leaf)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(
            found, expected.to(found), rtol=1e-5 if found.dtype == torch.float32 else 1e-2, atol=2e-6
        )


@pytest.mark.parametrize("classes", [27, 601])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_stay_in_their_row_of_log_probs(bad: float, classes: int) -> None:
    sample = log_probs_sample(5, classes, dtype=torch.float32, ids_per_row=2)
    logits = sample.arguments["input"].clone()
    logits[2, 17] = bad
    values = evaluate(sample.with_arguments(input=logits))
    for name in ("log_probs", "entropy", "gradient of input"):
        assert values[name].view(5, -1).isnan().any(1).tolist() == [False, False, True, False, False], name
    torch.testing.assert_close(values["logsumexp"], logits.logsumexp(-1), equal_nan=True)
    expected = logits.nan_to_num(-torch.inf).argmax(-1) if bad != bad else logits.argmax(-1)
    assert torch.equal(values["argmax"], expected)


@pytest.mark.parametrize("bad", [-1, "classes", -(2**40), 2**40])
@pytest.mark.parametrize("classes", [27, 600, 9001])
def test_an_id_out_of_range_makes_its_log_prob_and_the_gradient_of_its_row_nan(classes: int, bad: int | str) -> None:
    sample = log_probs_sample(5, classes, dtype=torch.float32, ids_per_row=3)
    ids = sample.arguments["ids"].clone()
    ids[2, 1] = ids[4, 0] = classes if isinstance(bad, str) else bad
    is_bad = ids != sample.arguments["ids"]
    values, expected = evaluate(sample.with_arguments(ids=ids)), evaluate(sample)
    assert torch.equal(values["log_probs"].isnan(), is_bad)
    assert same_bits(values["log_probs"][~is_bad], expected["log_probs"][~is_bad])
    assert values["rank"].tolist() == [*expected["rank"][:4].tolist(), -1]
    for name in ("entropy", "logsumexp", "argmax"):
        assert same_bits(values[name], expected[name]), name
    gradient, others = values["gradient of input"], torch.tensor([0, 1, 3], device=device)
    assert gradient[[2, 4]].isnan().all()
    assert same_bits(gradient[others], expected["gradient of input"][others])


@pytest.mark.parametrize("ids_per_row", [None, 3])
@pytest.mark.parametrize("options", [{}, ALL_LOG_PROBS_OPTIONS], ids=names_of)
def test_ids_out_of_range_by_their_definition(options: dict[str, Any], ids_per_row: int | None) -> None:
    for sample in (
        log_probs_sample(9, 27, ids_per_row=ids_per_row, ignored=True, **options),
        linear_log_probs_sample(9, 3, 27, ids_per_row=ids_per_row, ignored=True, **options),
    ):
        ids = sample.arguments["ids"].clone()
        ids.view(9, -1)[::3, 0], ids.view(9, -1)[4, -1] = -1, 27
        check(sample.with_arguments(ids=ids), truth=out_of_range)


def test_only_ids_out_of_range() -> None:
    found = ops.log_probs(normal(2, 5), torch.tensor([[7, -100], [-100, -100]], device=device))
    assert found.log_probs.isnan().tolist() == [[True, False], [False, False]]
    assert found.argmax.tolist() == [int(normal(2, 5)[0].argmax()), -1]
    assert found.entropy.isfinite().all()


# linear_log_probs: in the chunks of linear_cross_entropy, once for forward and once for backward.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2047, 2048, 2049, 4096, 4200])
def test_log_probs_in_chunks_of_any_length(rows: int, dtype: torch.dtype) -> None:
    sample = linear_log_probs_sample(rows, 2, 3, dtype=dtype, ids_per_row=2, ignored=True)
    with Products() as products:
        ops.linear_log_probs(**sample.arguments)
    assert [len(logits) for logits in products.results] == [min(2048, rows - first) for first in range(0, rows, 2048)]
    check(sample)


@pytest.mark.parametrize(
    ("trained", "count"), [(("input", "linear_weight"), 4), (("input",), 3), (("linear_weight",), 3), ((), 1)]
)
def test_log_probs_take_a_product_twice_for_the_logits_and_one_for_each_gradient(
    trained: tuple[str, ...], count: int
) -> None:
    sample = linear_log_probs_sample(9, 5, 600, dtype=torch.bfloat16, bias=False)
    leaves = {name: sample.arguments[name].clone().requires_grad_() for name in trained}
    with Products() as products:
        found = ops.linear_log_probs(**{**sample.arguments, **leaves})
        if trained:
            torch.autograd.grad(found.log_probs.sum(), list(leaves.values()))
    assert len(products.results) == count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, ALL_LOG_PROBS_OPTIONS], ids=names_of)
@pytest.mark.parametrize("classes", [1, 27, 511, 530, 4100])
def test_gradients_in_the_place_of_their_logits(classes: int, options: dict[str, Any], dtype: torch.dtype) -> None:
    check(linear_log_probs_sample(7, 3, classes, dtype=dtype, ids_per_row=9, ignored=True, **options))


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_an_id_out_of_range_makes_its_row_of_a_chunk_nan(bad: int) -> None:
    sample = linear_log_probs_sample(2100, 2, 3, dtype=torch.float32)
    ids = sample.arguments["ids"].clone()
    ids[2060] = bad
    values, expected = evaluate(sample.with_arguments(ids=ids)), evaluate(sample)
    others = torch.arange(2100, device=device) != 2060
    for name in ("log_probs", "gradient of input"):
        assert torch.equal(values[name].view(2100, -1).isnan().all(1), ~others)
        assert same_bits(values[name][others], expected[name][others])
    assert values["gradient of linear_weight"].isnan().all()


# mlp_cross_entropy, (N, T, V, D, H): vocabularies around the widths of vectors, rows and hidden units beyond one block
# of each; models whose dP fits into shared memory, models whose dP does not, and too large ones, the last in chunks.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1),
        (7, 3, 27, 4, 9),
        (40, 3, 27, 0, 9),
        (65, 3, 27, 10, 40),
        (33, 8, 28, 3, 33),
        (150, 2, 65, 5, 16),
        (5, 3, 300, 4, 24),
        (70, 1, 33, 2, 70),
        (700, 4, 27, 3, 130),
        (40, 8, 27, 3, 300),
        (35, 3, 65, 4, 220),
        (2100, 1, 80, 2, 3),
    ],
)
def test_models_of_every_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(mlp_cross_entropy_sample(*shape, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_large_model_is_computed_as_it_is_stored(reduction: str, dtype: torch.dtype) -> None:
    check(mlp_cross_entropy_sample(5, 2, 2050, 3, 520, dtype=dtype, reduction=reduction))


@pytest.mark.parametrize("targets", ["indices", "ignored"])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_models_with_every_reduction(dtype: torch.dtype, reduction: str, softcap: float | None, targets: str) -> None:
    options = {"targets": targets, "reduction": reduction, "softcap": softcap}
    for classes in (27, 80):  # in tiles; one layer after the other
        check(mlp_cross_entropy_sample(9, 3, classes, dtype=dtype, **options))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("missing", [("bias1",), ("bias2",), ("bias1", "bias2")])
def test_models_without_biases(missing: tuple[str, ...], reduction: str) -> None:
    sample = mlp_cross_entropy_sample(9, reduction=reduction).with_arguments(**dict.fromkeys(missing))
    check(replace(sample, differentiable=tuple(n for n in sample.differentiable if n not in missing)))


@pytest.mark.parametrize("name", ["ids", "target"])
@pytest.mark.parametrize("bad", [-1, -99, 27, 2**40])
def test_a_value_out_of_range_makes_the_loss_of_its_row_nan(bad: int, name: str) -> None:
    sample = mlp_cross_entropy_sample(9, dtype=torch.float32, reduction="none")
    values = sample.arguments[name].clone()
    values[5] = bad
    losses = evaluate(sample.with_arguments(**{name: values}))["result"]
    expected = evaluate(sample)["result"]
    assert losses.isnan().tolist() == [n == 5 for n in range(9)]
    assert same_bits(losses[:5], expected[:5])
    assert evaluate(sample.with_arguments(**{name: values, "reduction": "mean"}))["result"].isnan()


# In any order.

IN_ANY_ORDER = {
    "narrow losses": cross_entropy_sample(300, 27, dtype=torch.float32, targets="ignored", **ALL_LOSS_OPTIONS),
    "wide losses": cross_entropy_sample(5, 600, dtype=torch.float32, targets="ignored", **ALL_LOSS_OPTIONS),
    "losses in parts": cross_entropy_sample(2, 33000, dtype=torch.float32, targets="ignored", **ALL_LOSS_OPTIONS),
    "pixels": cross_entropy_sample(40, 7, 5, dtype=torch.float32, targets="ignored", **ALL_LOSS_OPTIONS),
    "a projected table": embedding_linear_sample(**PROJECTED, dtype=torch.float32),
    "sorted rows": embedding_linear_sample(**SORTED, dtype=torch.float32),
    "gathered rows": embedding_linear_sample(**GATHERED, dtype=torch.float32),
    "an output layer": linear_cross_entropy_sample(
        9, 5, 600, dtype=torch.float32, targets="ignored", **ALL_LOSS_OPTIONS
    ),
    "chunks": linear_cross_entropy_sample(2100, 2, 3, dtype=torch.float32, targets="ignored", **ALL_LOSS_OPTIONS),
    "log-probabilities": log_probs_sample(300, 27, dtype=torch.float32, ids_per_row=3, ignored=True),
    "wide log-probabilities": log_probs_sample(3, 4100, dtype=torch.float32, ids_per_row=3, ignored=True),
    "log-probabilities of an output layer": linear_log_probs_sample(9, 5, 600, dtype=torch.float32, ids_per_row=3),
    "a model": mlp_cross_entropy_sample(150, dtype=torch.float32),
}


@pytest.mark.parametrize("sample", IN_ANY_ORDER.values(), ids=IN_ANY_ORDER)
def test_the_same_bits_in_any_order_of_threads(sample: Sample, reorder: Callable[[int], None]) -> None:
    first = evaluate(sample)
    reorder(1)
    for name, value in evaluate(sample).items():
        assert same_bits(value, first[name]), name
