"""GPUs that the kernels run on, and those of which the ops say in one sentence why they do not."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import simulator
import torch
from cases import (
    Sample,
    check,
    cross_entropy_sample,
    embedding_linear_sample,
    linear_cross_entropy_sample,
    mlp_cross_entropy_sample,
)
from engine_runs import OPTIMIZERS, make_batches, make_run
from simulator import Gpu

from building.cuda import TARGETS
from charlm import _C, ops

pytestmark = pytest.mark.cuda

# Every op; models of which an H100 has room for more, or for all, in its shared memory.
SAMPLES = {
    "cross_entropy": cross_entropy_sample(5, 600),
    "linear_cross_entropy": linear_cross_entropy_sample(9),
    "embedding_linear": embedding_linear_sample(123),
    "embedding_linear of wide rows": embedding_linear_sample(300, 3, 27, 10, 200),
    "mlp_cross_entropy": mlp_cross_entropy_sample(65),
    "mlp_cross_entropy of a large model": mlp_cross_entropy_sample(65, 3, 27, 10, 200),
}
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)

GOOD = {
    "a T4": Gpu("7.5", 64),
    "a T4 with the oldest driver": Gpu("7.5", 64, "13.0"),
    "an A100": Gpu("8.0", 163),
    "an L4": Gpu("8.9", 99),
    "a B300": Gpu("10.3", 227),
    "an RTX 50, through intermediate code": Gpu("12.0", 99),
}
INSTEAD = "; backend 'eager', which is plain PyTorch, works there"
BAD = {
    "a V100": (
        Gpu("7.0", 96),
        f"charlm has no kernels for cuda:%d, whose compute capability is 7.0: this build has them for "
        f"{' '.join(TARGETS)}{INSTEAD}",
    ),
    "a driver for the CUDA before": (
        Gpu("9.0", 227, "12.8"),
        "charlm's kernels cannot run on cuda:%d: its driver is for CUDA 12.8, and this build needs one for CUDA 13.0 "
        f"(580 or newer on Linux): install one, or build charlm with nvcc of CUDA 12{INSTEAD}",
    ),
    "a driver for an old CUDA": (
        Gpu("8.0", 163, "11.4"),
        "charlm's kernels cannot run on cuda:%d: its driver is for CUDA 11.4, and this build needs one for CUDA 13.0 "
        f"(580 or newer on Linux): install one{INSTEAD}",
    ),
    "no driver": (
        Gpu("8.0", 163, "0.0"),
        "charlm's kernels cannot run on cuda:%d: there is no driver, and this build needs one for CUDA 13.0 "
        f"(580 or newer on Linux): install one{INSTEAD}",
    ),
    "an RTX 50 whose driver does not compile": (
        Gpu("12.0", 99, "13.0"),
        "charlm has only intermediate code for cuda:%d, whose compute capability is 12.0, and its driver, for CUDA "
        "13.0, does not compile that of CUDA 13.1: install a driver for that, or build charlm with nvcc of CUDA 13.0"
        f"{INSTEAD}",
    ),
}


@every_sample
@pytest.mark.parametrize("gpu", GOOD.values(), ids=GOOD)
def test_kernels_run_where_there_is_code(gpu: Gpu, sample: Sample) -> None:
    with simulator.tensors_on(gpu) as index:
        assert _C.why_no_kernels(index) is None
        check(sample)


@pytest.mark.parametrize(("gpu", "sentence"), BAD.values(), ids=BAD)
def test_one_sentence_says_why_there_are_no_kernels_and_what_to_do(gpu: Gpu, sentence: str) -> None:
    with simulator.tensors_on(gpu) as index:
        for _ in range(2):  # found out, and known
            assert _C.why_no_kernels(index) == sentence % index


@every_sample
@pytest.mark.parametrize(("gpu", "sentence"), BAD.values(), ids=BAD)
def test_ops_say_it_where_they_are_called(gpu: Gpu, sentence: str, sample: Sample) -> None:
    with simulator.tensors_on(gpu) as index:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=f"^{re.escape(sentence % index)}$"):
                sample.call(getattr(ops, sample.op), {})
    check(sample)  # elsewhere all is well


def test_asking_changes_no_current_device() -> None:
    with simulator.tensors_on(Gpu("8.6", 99)) as index, simulator.current_device(1):
        assert _C.why_no_kernels(index) is None


def test_many_threads_ask_at_once() -> None:
    with simulator.tensors_on(Gpu("6.1", 96)) as index, ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(_C.why_no_kernels, [index] * 32))
    assert len(answers) == 1
    assert "compute capability is 6.1" in str(answers.pop())


def test_an_error_that_may_pass_is_not_kept() -> None:
    """Such as that of a GPU that is not there, or not yet."""
    with simulator.tensors_on(Gpu("8.0", 163, "13.8")) as last:
        pass
    missing = f"CUDA cannot load charlm's kernels on cuda:{last + 1}: invalid device ordinal"
    assert _C.why_no_kernels(last + 1) == missing
    with simulator.tensors_on(Gpu("8.0", 163, "13.9")) as index:
        assert index == last + 1
        assert _C.why_no_kernels(index) is None


@every_sample
@pytest.mark.parametrize("number", [0, 1, 3])
def test_launches_are_on_the_current_stream(number: int, sample: Sample, reorder: Callable[[int], None]) -> None:
    """On any other, the simulator ends them with an error: test_planted_faults.py shows that."""
    with simulator.stream(number):
        check(sample)


# 27 KB of parameters in float64, as much for a gradient and each tensor of the state, and 83 KB beside them.
@pytest.mark.parametrize("shared_kib", [112, 140, 167, 195])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_training_has_the_same_bits_where_shared_memory_has_no_room_for_all(shared_kib: int, optimizer: str) -> None:
    batches, rates = make_batches(3, 40)
    losses = []
    runs = [make_run((27, 2, 4, 90), torch.float64, **OPTIMIZERS[optimizer]) for _ in range(2)]
    for run, gpu in zip(runs, (simulator.GPUS[0], Gpu("8.0", shared_kib)), strict=True):
        with simulator.tensors_on(gpu):
            losses.append(run.fused(batches, rates))
    assert torch.equal(*losses)
    for one, other in zip(*(run.parameters for run in runs), strict=True):
        assert torch.equal(one, other)


def test_a_gpu_with_too_little_shared_memory() -> None:
    with simulator.tensors_on(Gpu("8.0", 110)) as index:
        assert not _C.trains_in_one_launch(index, 27, 2, 4, 90, False, True)
        with pytest.raises(ValueError, match=f"must fit into the shared memory of cuda:{index}, but V=27"):
            make_run((27, 2, 4, 90), torch.float64).fused(*make_batches(1, 4))


def test_the_shared_memory_that_the_lectures_model_takes() -> None:
    """122 KiB with its parameters, 50 KiB more with its gradient: an A100 has room for both."""
    for kib, fits in ((121, False), (122, True)):
        with simulator.tensors_on(Gpu("8.0", kib)) as index:
            assert _C.trains_in_one_launch(index, 27, 3, 10, 200, False, False) is fits
