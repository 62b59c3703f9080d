"""Faults in the kernels of cross_entropy."""

from __future__ import annotations

import torch
from cases import ALL_LOSS_OPTIONS, check, cross_entropy_sample
from planted import WRONG_NUMBERS, Planted
from simulated import Ops
from simulator import Server

FILES = ("cross_entropy.cu", "cross_entropy_narrow.cuh", "cross_entropy_wide.cuh", "reduce.cuh", "softmax_row.cuh")

NARROW, WIDE, ROW = "cross_entropy_narrow.cuh", "cross_entropy_wide.cuh", "softmax_row.cuh"
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


def run_everything(server: Server) -> None:
    """Every way through the kernels."""
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


PLANTED = Planted("cross_entropy", FILES, MISTAKES, run_everything)
