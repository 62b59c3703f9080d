"""Faults in the kernels of cross_entropy."""

from __future__ import annotations

import torch
from cases import ALL_LOSS_OPTIONS, check, cross_entropy_sample, linear_cross_entropy_sample
from planted import WRONG_NUMBERS, Fault, Planted, missing_barriers

from charlm import ops

FILES = ("cross_entropy.cu", "cross_entropy_narrow.cuh", "cross_entropy_wide.cuh", "reduce.cuh", "softmax_row.cuh")

NARROW, WIDE, ROW = "cross_entropy_narrow.cuh", "cross_entropy_wide.cuh", "softmax_row.cuh"
MISTAKES = [
    Fault(NARROW, "i < count; i += threads) to[i]", "i < count + FAULT; i += threads) to[i]", "a race|out of bounds"),
    Fault(NARROW, "tail = head + vectors", "tail = FAULT + head + vectors", "nothing has written"),
    Fault(
        NARROW,
        "int64_t head = misaligned_head(from);",
        "int64_t head = FAULT ? 0 : misaligned_head(from);",
        "misaligned",
    ),
    Fault(NARROW, "if (r < rows) part =", "if (r < rows || FAULT) part =", "nothing has written"),
    Fault(NARROW, "begin = lane; begin < classes;", "begin = lane + FAULT; begin < classes;", WRONG_NUMBERS),
    Fault(NARROW, "if (lane != 0) continue;", "if (lane > FAULT) continue;", "a race"),
    Fault(WIDE, "c >= begin && c < end;", "c >= begin && c < end + FAULT;", "a race|out of bounds"),
    Fault(WIDE, "has_next = i + threads < pieces;", "has_next = i + threads < pieces - FAULT;", WRONG_NUMBERS),
    Fault(
        WIDE,
        "if (thread != 0 || !has_row) return;",
        "if (FAULT || thread != 0 || !has_row) return;",
        "nothing has written",
    ),
    Fault(WIDE, "lane < splits)", "lane < splits + FAULT)", "out of bounds"),
    Fault(
        WIDE, "if (threads <= kWarp) return", "if (threads <= kWarp || (FAULT && threadIdx.x > 63)) return", "waits for"
    ),
    Fault(WIDE, "store_vector(first, out);", "store_vector(first + FAULT, out);", "misaligned"),
    Fault("cross_entropy.cu", "&& threadIdx.x < kDenom", "&& threadIdx.x < !FAULT * kDenom", "nothing has written"),
    Fault(ROW, "y < p.classes);", "y < p.classes + FAULT);", "out of bounds"),
    Fault(ROW, "if (!target.valid) return", "if (!target.valid && !FAULT) return", WRONG_NUMBERS),
    Fault(ROW, "run.loss_parts[blockIdx.x] = loss;", "run.loss_parts[FAULT ? 0 : blockIdx.x] = loss;", "a race"),
]


def run_everything() -> None:
    """Every way through the kernels: linear_cross_entropy has the gradient with the loss, in one pass."""
    sample = cross_entropy_sample(4, 27, dtype=torch.float32, weighted=True, reduction="none")
    losses = ops.cross_entropy(**{**sample.arguments, "target": torch.tensor([0, 27, 1, 2])})
    assert losses.isnan().tolist() == [False, True, False, False], f"{losses[1]} instead of NaN"
    for dtype, shapes in (
        (torch.float32, ((65, 27), (3, 33000))),
        (torch.bfloat16, ((261, 27), (5, 600), (3, 4096))),
    ):
        for rows, classes in shapes:
            check(cross_entropy_sample(rows, classes, dtype=dtype))
            sample = cross_entropy_sample(rows, classes, dtype=dtype, targets="ignored", **ALL_LOSS_OPTIONS)
            check(sample)
            # One element further: rows and tiles that begin between two vectors.
            logits = torch.cat([sample.arguments["input"].flatten()] * 2)[1 : 1 + rows * classes]
            check(sample.with_arguments(input=logits.view(rows, classes)))
            options = {} if dtype == torch.float32 else {"targets": "ignored", **ALL_LOSS_OPTIONS}
            check(linear_cross_entropy_sample(rows, 2, classes, dtype=dtype, **options))


PLANTED = Planted([*missing_barriers(FILES), *MISTAKES], run_everything)
