"""What the simulator is for: each of these mistakes, written into the kernels of cross_entropy, is found.

All of them are compiled into one program, in which `simulator::fault(number)` chooses one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import ALL_LOSS_OPTIONS, check, cross_entropy_sample
from simulated import Ops
from simulator import CSRC, KernelError, Server, build

CUDA = CSRC / "kernels" / "cuda"
FILES = ("cross_entropy.cu", "cross_entropy_narrow.cuh", "cross_entropy_wide.cuh", "reduce.cuh", "softmax_row.cuh")
BARRIER = re.compile(r"(?<!{ )__syncthreads\(\);")
# Every barrier of the kernels, as its file and its number in it.
BARRIERS = [(name, i) for name in FILES for i in range(len(BARRIER.findall((CUDA / name).read_text())))]

NARROW, WIDE, ROW = "cross_entropy_narrow.cuh", "cross_entropy_wide.cuh", "softmax_row.cuh"
WRONG_NUMBERS = "instead of"
# file, what it says, what a mistake makes of it, and how it shows.
MISTAKES = [
    (NARROW, "i < count; i += threads) to[i]", "i < count + FAULT; i += threads) to[i]", "a race|out of bounds"),
    (NARROW, "tail = head + vectors", "tail = FAULT + head + vectors", "nothing has written"),
    (
        NARROW,
        "int64_t head = misaligned_head(from);",
        "int64_t head = FAULT ? 0 : misaligned_head(from);",
        "misaligned",
    ),
    (NARROW, "if (r < rows) part =", "if (r < rows || FAULT) part =", "nothing has written"),
    (NARROW, "begin = lane; begin < classes;", "begin = lane + FAULT; begin < classes;", WRONG_NUMBERS),
    (NARROW, "if (lane != 0) continue;", "if (lane > FAULT) continue;", "a race"),
    (WIDE, "c >= begin && c < end;", "c >= begin && c < end + FAULT;", "a race|out of bounds"),
    (WIDE, "has_next = i + threads < pieces;", "has_next = i + threads < pieces - FAULT;", WRONG_NUMBERS),
    (
        WIDE,
        "if (thread != 0 || !has_row) return;",
        "if (FAULT || thread != 0 || !has_row) return;",
        "nothing has written",
    ),
    (WIDE, "lane < splits)", "lane < splits + FAULT)", "out of bounds"),
    (WIDE, "if (threads <= kWarp) return", "if (threads <= kWarp || (FAULT && threadIdx.x > 63)) return", "waits for"),
    (WIDE, "store_vector(first, out);", "store_vector(first + FAULT, out);", "misaligned"),
    (ROW, "y < p.classes);", "y < p.classes + FAULT);", "out of bounds"),
    (ROW, "if (!target.valid) return", "if (!target.valid && !FAULT) return", WRONG_NUMBERS),
    (ROW, "run.loss_parts[blockIdx.x] = loss;", "run.loss_parts[FAULT ? 0 : blockIdx.x] = loss;", "a race"),
]


def edits() -> dict[str, Callable[[str], str]]:
    """All faults, numbered from 1: the missing barriers, then the mistakes."""

    def edit(name: str, text: str) -> str:
        numbers = iter([number for number, (file, _) in enumerate(BARRIERS, 1) if file == name])
        text = BARRIER.sub(lambda _: f"if (!simulator::fault({next(numbers)})) {{ __syncthreads(); }}", text)
        for number, (file, right, wrong, _) in enumerate(MISTAKES, 1 + len(BARRIERS)):
            if file == name:
                assert text.count(right) == 1, f"{name} has not one place that says {right}"
                text = text.replace(right, wrong.replace("FAULT", f"simulator::fault({number})"))
        return text

    changed = {file for file, *_ in [*BARRIERS, *MISTAKES]}
    return {name: lambda text, name=name: edit(name, text) for name in changed}


@pytest.fixture(scope="session")
def faulty() -> Path:
    return build("cross_entropy", "races", edits())


def run_everything(program: Path, fault: int) -> None:
    """Every way through the kernels, with one fault at work."""
    server = Server(program)
    try:
        server.plant(fault)
        cuda = Ops(server)
        sample = cross_entropy_sample(4, 27, dtype=torch.float32, weighted=True, reduction="none")
        losses = cuda.cross_entropy(**{**sample.arguments, "target": torch.tensor([0, 27, 1, 2])})
        assert losses.isnan().tolist() == [False, True, False, False], f"{losses[1]} instead of NaN"
        for dtype, in_forward in ((torch.float32, False), (torch.bfloat16, True)):
            cuda = Ops(server, gradient_in_forward=in_forward)
            for shape in ((261, 27), (5, 600), (3, 4096)) if in_forward else ((65, 27), (3, 33000)):
                check(cross_entropy_sample(*shape, dtype=dtype), cuda)
                sample = cross_entropy_sample(*shape, dtype=dtype, targets="ignored", **ALL_LOSS_OPTIONS)
                check(sample, cuda)
                # One element further: rows and tiles that begin between two vectors.
                logits = torch.cat([sample.arguments["input"].flatten()] * 2)[1 : 1 + shape[0] * shape[1]]
                check(sample.with_arguments(input=logits.view(shape)), cuda)
    finally:
        server.close()


def test_without_a_fault_all_is_well(faulty: Path) -> None:
    run_everything(faulty, 0)


@pytest.mark.parametrize("number", range(len(BARRIERS)), ids=[f"{file}, barrier {i}" for file, i in BARRIERS])
def test_a_missing_barrier_is_found(number: int, faulty: Path) -> None:
    with pytest.raises(KernelError, match=r"a race|nothing has written"):
        run_everything(faulty, 1 + number)


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[wrong for _, _, wrong, _ in MISTAKES])
def test_a_mistake_is_found(number: int, faulty: Path) -> None:
    shows_as = MISTAKES[number][3]
    with pytest.raises(AssertionError if shows_as == WRONG_NUMBERS else KernelError, match=shows_as):
        run_everything(faulty, 1 + len(BARRIERS) + number)
