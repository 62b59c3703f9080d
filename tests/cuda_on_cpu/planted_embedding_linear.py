"""Faults in the kernels of embedding_linear, and in those that it shares with the other layers."""

from __future__ import annotations

import torch
from cases import check, embedding_linear_sample
from planted import WRONG_NUMBERS, Fault, Planted, missing_barriers

from charlm import ops

TABLE, ROWS, KEYS, SEGMENTS, SUMS = (
    "embedding_linear_table.cuh",
    "embedding_linear_rows.cuh",
    "token_keys.cuh",
    "segmented_sum.cuh",
    "column_sums.cuh",
)

MISTAKES = [
    Fault(KEYS, "id < vocab_size;", "id < vocab_size + FAULT;", "out of bounds"),
    Fault(KEYS, "if (row >= ids.rows) return;", "if (row >= ids.rows + FAULT) return;", "out of bounds"),
    Fault(
        TABLE, "i < shape.table_rows; ++i) column", "i < shape.table_rows - FAULT; ++i) column", "nothing has written"
    ),
    Fault(
        TABLE,
        "tables + warp * shape.table_rows * kWarp",
        "tables + (FAULT ? 0 : warp) * shape.table_rows * kWarp",
        "race",
    ),
    Fault(TABLE, "end < p.rows ? end : p.rows;", "end < p.rows ? end : p.rows - FAULT;", WRONG_NUMBERS),
    Fault(ROWS, "if (i >= count) return;", "if (i >= count + FAULT) return;", "out of bounds"),
    Fault(SEGMENTS, "j >= 0 && j < count", "j >= 0 && j < count + FAULT", "out of bounds"),
    Fault(
        SEGMENTS,
        "run == begin && begins_earlier",
        "run == begin && begins_earlier && !FAULT",
        "a race|nothing has written",
    ),
    Fault(SEGMENTS, "last && ends_later", "last && ends_later && !FAULT", "nothing has written"),
    Fault(SEGMENTS, "other = tile + 1; other <= last;", "other = tile + 1; other < last + 1 - FAULT;", WRONG_NUMBERS),
    Fault(  # behind the last row may be any other memory
        SUMS,
        "row < last; row += kSumRows",
        "row < last + FAULT; row += kSumRows",
        "out of bounds|nothing has written|a race|" + WRONG_NUMBERS,
    ),
    Fault(SUMS, "int i = 1; i < kSumRows;", "int i = 1; i < kSumRows - FAULT;", WRONG_NUMBERS),
]


def run_everything() -> None:
    """Every way through the kernels."""
    ids = torch.tensor([[0, 1, 2], [3, 27, 0], [-1, 2, 1]])
    sample = embedding_linear_sample(3).with_arguments(ids=ids)
    assert ops.embedding_linear(**sample.arguments)[1:].isnan().all()
    for sizes in ((300, 3, 27, 4, 40), (300, 3, 250, 2, 8), (300, 3, 400, 4, 16)):
        check(embedding_linear_sample(*sizes, activation="gelu"))


PLANTED = Planted([*missing_barriers((TABLE, ROWS, KEYS, SEGMENTS, SUMS)), *MISTAKES], run_everything)
