"""Faults in the kernel of small models."""

from __future__ import annotations

import torch
from cases import check, evaluate, mlp_cross_entropy_sample
from planted import WRONG_NUMBERS, Fault, Planted, missing_barriers

TILES, MODEL = "mlp_tiles.cuh", "mlp_cross_entropy.cu"
MISTAKES = [
    Fault(TILES, "2 * kWarp + table_values", "2 * kWarp - 4 * FAULT + table_values", "out of bounds"),
    Fault(TILES, "first + r < rows ? h", "(FAULT || first + r < rows) ? h", WRONG_NUMBERS),
    Fault(TILES, "h < p.hidden_dim; h += kVector", "h < p.hidden_dim - FAULT; h += kVector", WRONG_NUMBERS),
    Fault(TILES, "__syncwarp();", "if (!FAULT) __syncwarp();", "a race"),
    Fault(TILES, ">= 0 ? gradient", ">= 0 || FAULT ? gradient", "NaN instead of|" + WRONG_NUMBERS),
    Fault(TILES, "c = classes; c < kClasses", "c = classes + FAULT; c < kClasses", "nothing has written"),
    Fault(
        TILES,
        "row = 0; row < p.table_rows; ++row) memory",
        "row = FAULT; row < p.table_rows; ++row) memory",
        "nothing has",
    ),
    Fault(TILES, "i < rows * p.context_length ?", "i < rows * p.context_length + FAULT ?", "out of bounds"),
    Fault(TILES, "gradients + blockIdx.x *", "gradients + (FAULT ? 0 : blockIdx.x) *", "a race"),
    Fault(TILES, "r < rows; ++r) bias_gradient", "r < rows - FAULT; ++r) bias_gradient", WRONG_NUMBERS),
    Fault(
        TILES,
        "row < p.table_rows; ++row) {",
        "row < p.table_rows - FAULT; ++row) {",
        "out of bounds|nothing has written",
    ),
    Fault(MODEL, "from += values;", "from += values + FAULT;", "out of bounds|" + WRONG_NUMBERS),
    Fault(MODEL, "p_.has_gradient && p_.output.mean", "p_.has_gradient && p_.output.mean && !FAULT", WRONG_NUMBERS),
]


def run_everything() -> None:
    """Every way through the kernel."""
    sample = mlp_cross_entropy_sample(5, 3, 27, 4, 9, dtype=torch.float32, reduction="none")
    ids = sample.arguments["ids"].clone()
    ids[2, 1] = 27
    values = evaluate(sample.with_arguments(ids=ids))
    assert values["result"].isnan().tolist() == [n == 2 for n in range(5)], f"{values['result']} instead of one NaN"
    assert values["gradient of embedding"].isfinite().all(), "NaN instead of the gradient of the other rows"
    check(mlp_cross_entropy_sample(65, 3, 27, 4, 9, dtype=torch.float32))
    check(mlp_cross_entropy_sample(700, 4, 27, 3, 130, dtype=torch.float32))
    check(mlp_cross_entropy_sample(33, 2, 65, 3, 40, dtype=torch.float32, softcap=3.0))


PLANTED = Planted([*missing_barriers((TILES,)), *MISTAKES], run_everything)
