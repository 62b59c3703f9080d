"""Faults in the kernels of cross_entropy."""

from __future__ import annotations

import torch
from cases import ALL_LOSS_OPTIONS, check, cross_entropy_sample, linear_cross_entropy_sample
from planted import WRONG_NUMBERS, Fault, Planted, missing_barriers

from charlm import ops

FILES = ("cross_entropy.cu", "cross_entropy_narrow.cuh", "cross_entropy_wide.cuh", "reduce.cuh")

NARROW, WIDE, ROW = "cross_entropy_narrow.cuh", "cross_entropy_wide.cuh", "softmax_row.cuh"
PIECES, SUMS = "row_pieces.cuh", "cross_entropy.cu"
BEYOND_THE_ROW = f"out of bounds|nothing has written|{WRONG_NUMBERS}"
MISTAKES = [
    Fault(NARROW, "e < head + count - tail;", "e < head + count - tail + FAULT;", "a race|out of bounds"),
    Fault(NARROW, "tail = head + vectors", "tail = FAULT + head + vectors", "nothing has written"),
    Fault(
        NARROW,
        "const int head = misaligned_head(source);",
        "const int head = FAULT ? 0 : misaligned_head(source);",
        "misaligned",
    ),
    Fault(NARROW, "wait_for_copies();", "if (!FAULT) wait_for_copies();", "nothing has written"),
    Fault(NARROW, "has_row = r < rows,", "has_row = r < rows + FAULT,", "nothing has written|out of bounds"),
    Fault(NARROW, "int begin = lane;", "int begin = lane + FAULT;", WRONG_NUMBERS),
    Fault(NARROW, "if (lane == 0 && has_row) {", "if (lane <= FAULT && has_row) {", "a race"),
    Fault(NARROW, "__syncwarp();", "if (!FAULT) __syncwarp();", "a race"),
    Fault(NARROW, "target % lanes == lane)", "target % lanes == lane + FAULT)", WRONG_NUMBERS),
    Fault(
        PIECES,
        "v + (kVectorsAhead - 1) * threads < vectors;",
        "v + (kVectorsAhead - 1) * threads < vectors + FAULT;",
        BEYOND_THE_ROW,
    ),
    Fault(PIECES, "raw[k - 1] = raw[k];", "raw[k - 1] = raw[FAULT ? k - 1 : k];", WRONG_NUMBERS),
    Fault(
        PIECES,
        "e < head + end - last;",
        "e < head + end - last + FAULT;",
        BEYOND_THE_ROW,
    ),
    Fault(PIECES, "contains(i) ? piece", "contains(i) || FAULT ? piece", "out of bounds"),
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
    Fault(PIECES, "(row + classes.first) =", "(row + FAULT + classes.first) =", "misaligned"),
    Fault(SUMS, "k * step < p.rows ? row", "k * step < p.rows || FAULT ? row", "out of bounds"),
    Fault(ROW, "static_cast<uint64_t>(p.classes);", "static_cast<uint64_t>(p.classes + FAULT);", "out of bounds"),
    Fault(ROW, "if (!target.valid) return", "if (!target.valid && !FAULT) return", WRONG_NUMBERS),
    Fault(ROW, "!target.ignored && target.valid ?", "(FAULT || (!target.ignored && target.valid)) ?", WRONG_NUMBERS),
    Fault(NARROW, "scale * token_weight(", "FAULT ? scale : scale * token_weight(", WRONG_NUMBERS),
    Fault(ROW, "run.loss_parts[blockIdx.x] = sums", "run.loss_parts[FAULT ? 0 : blockIdx.x] = sums", "a race"),
]


def run_everything() -> None:
    """Every way through the kernels: linear_cross_entropy has the gradient with the loss, in one pass."""
    sample = cross_entropy_sample(4, 27, dtype=torch.float32, weighted=True, reduction="none")
    losses = ops.cross_entropy(**{**sample.arguments, "target": torch.tensor([0, 27, 1, 2])})
    assert losses.isnan().tolist() == [False, True, False, False], f"{losses[1]} instead of NaN"
    check(cross_entropy_sample(2, 90, 3, dtype=torch.float32))  # classes that are not adjacent
    sample = cross_entropy_sample(9, 27, dtype=torch.float32, targets="ignored", token_weighted=True)
    ignored = sample.arguments["target"] == -100
    check(sample.with_arguments(token_weights=sample.arguments["token_weights"].masked_fill(ignored, torch.nan)))
    for dtype, shapes in (
        (torch.float32, ((65, 27), (9, 101), (3, 33000))),
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
