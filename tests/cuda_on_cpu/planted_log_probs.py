"""Faults in the kernels of log_probs and linear_log_probs."""

from __future__ import annotations

import torch
from cases import Sample, check, evaluate, linear_log_probs_sample, log_probs_sample
from planted import WRONG_NUMBERS, Fault, Planted, missing_barriers

from charlm.ops import reference

KERNELS, ROW, GROUP, LAYER = "log_probs.cu", "log_probs_row.cuh", "row_group.cuh", "output_layer.cuh"
BEYOND_THE_ROW = f"out of bounds|nothing has written|{WRONG_NUMBERS}"
MISTAKES = [
    Fault(KERNELS, "exists(index < p.rows)", "exists(index < p.rows + FAULT)", BEYOND_THE_ROW),
    Fault(KERNELS, "k < ids_per_row; k +=", "k < ids_per_row + FAULT; k +=", BEYOND_THE_ROW),
    Fault(KERNELS, "for (int c = first; c", "for (int c = first + FAULT; c", WRONG_NUMBERS),
    Fault(KERNELS, "place >= 0 && own_largest ==", "place >= 0 && !FAULT && own_largest ==", WRONG_NUMBERS),
    Fault(KERNELS, "[](int a, int b) { return a <", "[](int a, int b) { return FAULT ? b : a <", WRONG_NUMBERS),
    Fault(KERNELS, "if (!row.is_led()) return;", "if (!(FAULT ? row.exists : row.is_led())) return;", "a race"),
    Fault(KERNELS, "first_input == first_input ?", "first_input == first_input || FAULT ?", WRONG_NUMBERS),
    Fault(KERNELS, "part.is_outside ? not", "part.is_outside && !FAULT ? not", WRONG_NUMBERS),
    Fault(KERNELS, "j < k && is_first;", "j < k && is_first && !FAULT;", "a race"),
    Fault(KERNELS, "group_barrier();\n\n  S* to", "if (!FAULT) group_barrier();\n\n  S* to", "a race"),
    Fault(KERNELS, "group_barrier();\n  for_each", "if (!FAULT) group_barrier();\n  for_each", "a race"),
    Fault(KERNELS, "values[i] = counts ?", "values[i] = counts || FAULT ?", WRONG_NUMBERS),
    Fault(KERNELS, "apart % kVectorBytes == 0)", "(FAULT || apart % kVectorBytes == 0))", "misaligned"),
    Fault(ROW, "static_cast<uint64_t>(p.classes) ?", "static_cast<uint64_t>(p.classes + FAULT) ?", BEYOND_THE_ROW),
    Fault(ROW, "factor == 0 ? 0 :", "factor == 0 && !FAULT ? 0 :", WRONG_NUMBERS),
    Fault(ROW, "return larger(difference,", "return FAULT ? difference : larger(difference,", WRONG_NUMBERS),
    Fault(ROW, "first_class() < *place)", "first_class() < *place && !FAULT)", WRONG_NUMBERS),
    Fault(
        ROW,
        "!(inputs[i] <= first_input)",
        "FAULT ? inputs[i] > first_input : !(inputs[i] <= first_input)",
        WRONG_NUMBERS,
    ),
    Fault(ROW, "classes.contains(i) ? logit", "classes.contains(i) || FAULT ? logit", WRONG_NUMBERS),
    Fault(GROUP, "if (lane == 0) shared", "if (lane <= FAULT) shared", "a race"),
    Fault(GROUP, "threadIdx.y) * warps", "threadIdx.y) * (warps + FAULT)", BEYOND_THE_ROW),
    Fault(
        GROUP,
        "if (threads <= kWarp) return part;",
        "if (threads <= kWarp || (FAULT && threadIdx.x > 63)) return part;",
        "waits for",
    ),
    Fault(GROUP, "    __syncwarp();", "    if (!FAULT) __syncwarp();", "a race"),
    Fault(LAYER, "rows_ - first < chunk_ ? rows_", "rows_ - first < chunk_ ? -FAULT + rows_", WRONG_NUMBERS),
    Fault(LAYER, "first > 0,", "first > 0 && !FAULT,", WRONG_NUMBERS),
    Fault(LAYER, "if (first == 0) {", "if (FAULT || first == 0) {", WRONG_NUMBERS),
]


def check_all(sample: Sample) -> None:
    """As `check`, and what it says of argmax and rank names the numbers."""
    found, expected = evaluate(sample), evaluate(sample, reference)
    for name in ("argmax", "rank") if sample.op == "log_probs" else ():
        right = torch.equal(found[name], expected[name])
        assert right, f"{sample.op}: {name} {found[name].tolist()} instead of {expected[name].tolist()}"
    check(sample)


def run_everything() -> None:
    """Every way through the kernels, on rows that begin anywhere in a vector; a gradient in the place of its logits."""
    sample = log_probs_sample(4, 100, dtype=torch.float32, ids_per_row=2)
    ids = torch.tensor([[1, 2], [3, 100], [-1, 4], [100, 5]])
    values = evaluate(sample.with_arguments(ids=ids))
    for name, where in (("log_probs", ids.clamp(0, 99) != ids), ("gradient of input", ids[:, :1] != 1)):
        is_nan = values[name].isnan()
        assert torch.equal(is_nan, where.expand_as(is_nan)), f"{name} is {values[name]} instead of NaN"

    logits = torch.ones(2, 300, dtype=torch.bfloat16)
    logits[1, 3], logits[1, 7], logits[1, 200] = torch.nan, -torch.inf, 1.5
    ids = torch.tensor([[7, 7, -100], [3, 3, 3]])
    flat = torch.cat([logits.flatten()] * 2)
    for classes in (300, 299):
        sample = log_probs_sample(2, classes, dtype=torch.bfloat16, ids_per_row=3).with_arguments(ids=ids)
        for first in (0, 3):
            input = flat[first : first + 2 * classes].view(2, classes)
            check_all(sample.with_arguments(input=input))
            check_all(sample.with_arguments(input=input.t().contiguous().t()))
    masked = log_probs_sample(2, 300, dtype=torch.float32)
    logits = masked.arguments["input"].clone()
    logits[:, 5:] = -torch.inf
    check_all(masked.with_arguments(input=logits))

    for dtype, shapes in (
        (torch.float32, ((300, 27), (5, 1003), (3, 4100))),
        (torch.bfloat16, ((261, 27), (5, 600), (2, 9001))),
    ):
        for rows, classes in shapes:
            sample = log_probs_sample(rows, classes, dtype=dtype, ids_per_row=5, ignored=True, softcap=5.0)
            check_all(sample)
            check_all(sample.with_arguments(softcap=None))
            strided = sample.arguments["input"].t().contiguous().t()
            check_all(sample.with_arguments(input=strided))
    for classes in (27, 530):
        check_all(linear_log_probs_sample(7, 3, classes, dtype=torch.float32, ids_per_row=5))
    check_all(linear_log_probs_sample(2100, 2, 3, dtype=torch.bfloat16, ids_per_row=2, ignored=True))


PLANTED = Planted([*missing_barriers((GROUP,)), *MISTAKES], run_everything)
