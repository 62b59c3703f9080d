"""Memory: no op touches what is not its own, believes a size that cannot be, or hides how much it asked for.

Arguments lie at the end of a page whose successor nobody may touch. What an op allocates for itself is under
AddressSanitizer's watch: `make sanitize`.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from typing import Any

import pytest
import torch
from cases import (
    ACTIVATIONS,
    DTYPES,
    Sample,
    check,
    cross_entropy_sample,
    device,
    embedding_linear_sample,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
    normal,
)
from engine_runs import OPTIMIZERS, make_batches, make_bigram, make_run
from torch import Tensor

from charlm import engine, ops

SAMPLES = {
    "embedding_linear": embedding_linear_sample(5, 3, 27, 10, 200, dtype=torch.float32),
    "cross_entropy": cross_entropy_sample(5, 27, dtype=torch.float32, weighted=True),
    "cross_entropy, probabilities": cross_entropy_sample(5, 27, dtype=torch.float32, targets="probabilities"),
    "linear_cross_entropy": linear_cross_entropy_sample(5, 6, 27, dtype=torch.float32, weighted=True),
    "mlp_cross_entropy": mlp_cross_entropy_sample(5, 3, 27, 10, 200, dtype=torch.float32),
    "log_probs": log_probs_sample(5, 27, dtype=torch.float32),
    "linear_log_probs": linear_log_probs_sample(5, 6, 27, dtype=torch.float32),
}
TENSORS = [
    (op, name)
    for op, sample in SAMPLES.items()
    for name, value in sample.arguments.items()
    if isinstance(value, Tensor)
]
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(tensor: Tensor) -> Tensor:
    """The same numbers, after which comes a page that ends the program if it is touched."""
    size = tensor.numel() * tensor.element_size()
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    end = pages * mmap.PAGESIZE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert _libc.mprotect(ctypes.c_void_p(address + end), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=end - size)
    return copy.view(tensor.shape).copy_(tensor)


def all_guarded(sample: Sample) -> Sample:
    tensors = {name: value for name, value in sample.arguments.items() if isinstance(value, Tensor)}
    return sample.with_arguments(**{name: guarded(value) for name, value in tensors.items()})


def runs_within_its_arguments(sample: Sample) -> None:
    check(all_guarded(sample))
    leaves = all_guarded(sample).leaves()
    result = all_guarded(sample).call(getattr(ops, sample.op), leaves)
    torch.autograd.grad(result, list(leaves.values()), guarded(torch.ones_like(result)))


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("hidden_dim", "activation"), [*zip((7, 100, 200, 208, 300), ACTIVATIONS, strict=True)])
def test_the_hidden_units_of_a_layer_are_shared_out_between_threads(
    hidden_dim: int, activation: str, dtype: torch.dtype, threads: None
) -> None:
    torch.set_num_threads(2)
    for vocab_size, dim in ((2000, 32), (27, 3)):  # rows are gathered, or products of tokens are
        sample = embedding_linear_sample(64, 8, vocab_size, dim, hidden_dim, dtype=dtype, activation=activation)
        runs_within_its_arguments(sample)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 27, 65, 603])
def test_the_losses_stay_within_their_arguments(classes: int, dtype: torch.dtype, threads: None) -> None:
    torch.set_num_threads(2)
    for options in ({}, {"weighted": True, "label_smoothing": 0.1, "softcap": 5.0}, {"targets": "probabilities"}):
        runs_within_its_arguments(cross_entropy_sample(67, classes, dtype=dtype, **options))
        for rows in (5, 67):
            sample = linear_cross_entropy_sample(rows, 33, classes, dtype=dtype, **options)
            runs_within_its_arguments(sample)
    runs_within_its_arguments(mlp_cross_entropy_sample(67, 3, classes, 5, 19, dtype=dtype))


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 27, 65, 603])
def test_log_probs_stay_within_their_arguments(classes: int, dtype: torch.dtype, threads: None) -> None:
    torch.set_num_threads(2)
    for options in ({}, {"ids_per_row": 3, "ignored": True, "temperature": 0.7, "softcap": 5.0}):
        runs_within_its_arguments(log_probs_sample(67, classes, dtype=dtype, **options))
        for rows in (5, 67):
            runs_within_its_arguments(linear_log_probs_sample(rows, 33, classes, dtype=dtype, **options))


@pytest.mark.cpu
@pytest.mark.parametrize("shape", [(27, 3, 10, 200), (300, 2, 17, 21)], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_steps_stay_within_their_arguments(shape: tuple[int, ...], optimizer: str, threads: None) -> None:
    torch.set_num_threads(2)
    for dtype in (torch.float32, torch.float64):
        runs = [make_run(shape, dtype, direct=True, **OPTIMIZERS[optimizer])]
        runs.append(make_bigram(shape[0], dtype, **OPTIMIZERS[optimizer]))
        for run in runs:
            parameters = [guarded(p.detach()) for p in run.parameters]
            state = [guarded(tensor) for tensor in run.new_state()]
            for size in (1, 33, 300):
                examples = [guarded(tensor) for tensor in (run.contexts, run.targets, *make_batches(2, size))]
                losses = engine.train_steps(parameters, state, *examples, **run.options)
                assert losses.isfinite().all()
            counts = [guarded(tensor) for tensor in run.counts()]
            rates = guarded(torch.tensor([0.1]))
            assert engine.train_full_steps(parameters, state, *counts, rates, **run.options).isfinite().all()
            assert engine.evaluate_full(parameters, *counts).isfinite()


@pytest.mark.parametrize("left", [0, 40])
@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_tensor_whose_storage_was_freed(op: str, name: str, left: int) -> None:
    # As FSDP does with the parameters of a layer, and as a cache does that is too large.
    freed = SAMPLES[op].arguments[name].clone()
    freed.untyped_storage().resize_(min(left, freed.numel() * freed.element_size() - 1))
    for leaves in ({}, {n: t for n, t in SAMPLES[op].leaves().items() if n != name}):
        with pytest.raises(RuntimeError, match=rf"{name} has shape .* bytes, .* data is not allocated"):
            SAMPLES[op].with_arguments(**{name: freed}).call(getattr(ops, SAMPLES[op].op), leaves)


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_storage_that_was_freed_between_forward_and_backward(op: str, name: str) -> None:
    sample = SAMPLES[op].with_arguments(**{name: SAMPLES[op].arguments[name].clone()})
    if "reduction" in ops.__dict__[sample.op].__kwdefaults__ or sample.op == "cross_entropy":
        sample = sample.with_arguments(reduction="none")
    leaves = sample.leaves()
    result = sample.call(getattr(ops, sample.op), leaves)
    sample.arguments[name].untyped_storage().resize_(0)
    message = ""  # where backward does not need it
    try:
        torch.autograd.grad(result.sum(), list(leaves.values()))
    except RuntimeError as error:
        message = str(error)
    assert message == "" or re.search(rf"{name} has shape .*data is not allocated", message)


@pytest.mark.cpu
def test_training_on_a_tensor_whose_storage_was_freed() -> None:
    for place in range(5):
        run = make_run((27, 3, 4, 9), torch.float32, optimizer="adamw")
        state = run.new_state()
        contexts, targets, (batches, rates) = run.contexts, run.targets, make_batches(2, 5)
        freed = [run.parameters[1].data, state[3], contexts, targets, batches][place]
        freed.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="data is not allocated"):
            engine.train_steps(run.parameters, state, contexts, targets, batches, rates, **run.options)


HUGE = 2**62


def expanded(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of any size in memory for one element."""
    return torch.zeros([1] * len(shape), dtype=dtype, device=device).expand(shape)


@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("embedding_linear", (expanded(1, 4, dtype=torch.int64), expanded(1, HUGE), torch.zeros(3, 0)), "D=46116860"),
        ("embedding_linear", (expanded(HUGE, 1, dtype=torch.int64), torch.zeros(5, 4), torch.zeros(3, 4)), "N=4611686"),
        ("embedding_linear", (expanded(1, HUGE, dtype=torch.uint8), torch.zeros(5, 4), torch.zeros(3, 0)), "T=4611686"),
        ("embedding_linear", (expanded(2, 2, dtype=torch.int64), torch.zeros(5, 4), expanded(HUGE // 8, 8)), "H=57646"),
        ("embedding_linear", (expanded(1, 2, dtype=torch.int64), expanded(2**31, 4), torch.zeros(3, 8)), "2\\^31 rows"),
        ("cross_entropy", (expanded(1, HUGE), torch.zeros(1, dtype=torch.int64)), "C=4611686"),
        ("cross_entropy", (expanded(HUGE, 1), expanded(HUGE, dtype=torch.int64)), "N=4611686"),
        ("cross_entropy", (torch.zeros(2**40, 0, 2**40), torch.zeros(2**40, 0, 2**40)), "too large"),
        ("linear_cross_entropy", (expanded(1, HUGE), expanded(1, HUGE), torch.zeros(1, dtype=torch.int64)), "D=46116"),
        ("linear_cross_entropy", (torch.zeros(1, 1), expanded(HUGE, 1), torch.zeros(1, dtype=torch.int64)), "C=46116"),
        ("log_probs", (expanded(HUGE, 1), expanded(HUGE, dtype=torch.int64)), "N=4611686"),
        ("log_probs", (expanded(2, 3), expanded(2, HUGE // 2, dtype=torch.int64)), "K=2305843"),
        ("linear_log_probs", (torch.zeros(1, 1), expanded(HUGE, 1), torch.zeros(1, dtype=torch.int64)), "C=46116"),
        ("linear_log_probs", (expanded(2, 3), torch.zeros(5, 3), expanded(2, HUGE // 2, dtype=torch.int64)), "K=23058"),
        (
            "mlp_cross_entropy",
            (
                torch.zeros(2, 2, dtype=torch.int64),
                torch.zeros(2, dtype=torch.int64),
                expanded(1, HUGE),
                torch.zeros(3, 0),
                None,
                torch.zeros(1, 3),
                None,
            ),
            "D=46116860",
        ),
        (
            "mlp_cross_entropy",
            (
                torch.zeros(2, 2, dtype=torch.int64),
                torch.zeros(2, dtype=torch.int64),
                torch.zeros(2, 3),
                expanded(HUGE // 8, 6),
                None,
                expanded(2, HUGE // 8),
                None,
            ),
            "H=5764607",
        ),
    ],
)
def test_sizes_whose_product_does_not_fit_into_64_bits(op: str, arguments: tuple[Any, ...], message: str) -> None:
    tensors = [value.to(device) if isinstance(value, Tensor) else value for value in arguments]
    with pytest.raises(ValueError, match=message):
        getattr(ops, op)(*tensors)


@pytest.mark.cpu
def test_training_with_sizes_whose_product_does_not_fit_into_64_bits() -> None:
    rates, batches = torch.tensor([0.1]), torch.zeros(1, 1, dtype=torch.int64)
    contexts, targets = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    parameters = [expanded(1, HUGE), torch.zeros(3, 0), torch.zeros(3), torch.zeros(1, 3), torch.zeros(1)]
    counts = (torch.tensor([0, 1]), targets, torch.ones(1))
    for call in (
        lambda: torch.ops.charlm.evaluate_full(parameters, contexts, *counts, 0.0),
        lambda: engine.train_steps(parameters, [], contexts, targets, batches, rates),
        lambda: engine.train_full_steps(parameters, [], contexts, *counts, rates),
    ):
        with pytest.raises(ValueError, match=r"embedding must be contiguous|sizes are too large"):
            call()
    small = [torch.zeros(2, 1), torch.zeros(3, 2), torch.zeros(3), torch.zeros(2, 3), torch.zeros(2)]
    many = expanded(1, HUGE, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"T=4611686|weight1 must have shape"):
        engine.train_steps(small, [], many, targets, batches, rates)
    with pytest.raises(
        (ValueError, RuntimeError), match=r"too large|can't allocate memory .*tried to allocate \d+ bytes"
    ):
        engine.train_steps(small, [], contexts, targets, expanded(1, HUGE // 4, dtype=torch.int64), rates)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("op", "arguments", "bytes_wanted"),
    [
        ("cross_entropy", (expanded(4, 2**48), torch.zeros(4, dtype=torch.int64)), 2**52),
        ("linear_cross_entropy", (torch.zeros(1, 1), expanded(2**46, 1), torch.zeros(1, dtype=torch.int64)), 2**48),
        ("embedding_linear", (torch.zeros(4, 1, dtype=torch.int64), torch.zeros(5, 1), expanded(2**46, 1)), 2**48),
    ],
)
def test_how_much_memory_was_asked_for(op: str, arguments: tuple[Tensor, ...], bytes_wanted: int) -> None:
    leaves = [value.requires_grad_() if value.is_floating_point() else value for value in map(Tensor.detach, arguments)]
    with pytest.raises(
        RuntimeError, match=rf"can't allocate memory on cpu: you tried to allocate {bytes_wanted} bytes"
    ):
        getattr(ops, op)(*leaves)


@pytest.mark.cpu
def test_memory_that_runs_out_in_a_thread(threads: None) -> None:
    """What a thread cannot have, for classes that do not lie side by side, is the caller's error."""
    torch.set_num_threads(2)
    with pytest.raises(RuntimeError, match=rf"can't allocate memory on cpu: you tried to allocate {2**52} bytes"):
        ops.cross_entropy(expanded(4, 2**48), torch.zeros(4, dtype=torch.int64))


def test_results_are_the_same_wherever_arguments_lie() -> None:
    """The guard changes nothing: the same numbers from memory in the middle of a page."""
    sample = SAMPLES["cross_entropy"]
    assert torch.equal(guarded(normal(3, 5).cpu()), normal(3, 5).cpu())
    check(sample)
