"""Faults in the kernels of embedding_linear, and in those that it shares with the other layers."""

from __future__ import annotations

import torch
from cases import check, embedding_linear_sample
from planted import WRONG_NUMBERS, Planted
from simulated import Ops
from simulator import Server

TABLE, ROWS, KEYS, SEGMENTS, SUMS = (
    "embedding_linear_table.cuh",
    "embedding_linear_rows.cuh",
    "token_keys.cuh",
    "segmented_sum.cuh",
    "column_sums.cuh",
)

MISTAKES = [
    (KEYS, "id < vocab_size;", "id < vocab_size + FAULT;", "out of bounds"),
    (KEYS, "if (row >= ids.rows) return;", "if (row >= ids.rows + FAULT) return;", "out of bounds"),
    (TABLE, "i < shape.table_rows; ++i) column", "i < shape.table_rows - FAULT; ++i) column", "nothing has written"),
    (
        TABLE,
        "tables + warp * shape.table_rows * kWarp",
        "tables + (FAULT ? 0 : warp) * shape.table_rows * kWarp",
        "race",
    ),
    (TABLE, "end < p.rows ? end : p.rows;", "end < p.rows ? end : p.rows - FAULT;", WRONG_NUMBERS),
    (ROWS, "if (i >= count) return;", "if (i >= count + FAULT) return;", "out of bounds"),
    (SEGMENTS, "j >= 0 && j < count", "j >= 0 && j < count + FAULT", "out of bounds"),
    (
        SEGMENTS,
        "run == begin && begins_earlier",
        "run == begin && begins_earlier && !FAULT",
        "a race|nothing has written",
    ),
    (SEGMENTS, "last && ends_later", "last && ends_later && !FAULT", "nothing has written"),
    (SEGMENTS, "other = tile + 1; other <= last;", "other = tile + 1; other < last + 1 - FAULT;", WRONG_NUMBERS),
    (SUMS, "row < last; row += kSumRows", "row < last + FAULT; row += kSumRows", "out of bounds|" + WRONG_NUMBERS),
    (SUMS, "int i = 1; i < kSumRows;", "int i = 1; i < kSumRows - FAULT;", WRONG_NUMBERS),
]


def run_everything(server: Server) -> None:
    """Every way through the kernels."""
    cuda = Ops(server)
    ids = torch.tensor([[0, 1, 2], [3, 27, 0], [-1, 2, 1]])
    sample = embedding_linear_sample(3).with_arguments(ids=ids)
    assert cuda.embedding_linear(**sample.arguments)[1:].isnan().all()
    for sizes in ((300, 3, 27, 4, 40), (300, 3, 250, 2, 8), (300, 3, 400, 4, 16)):
        check(embedding_linear_sample(*sizes, activation="gelu"), cuda)


PLANTED = Planted("embedding_linear", (TABLE, ROWS, KEYS, SEGMENTS, SUMS), MISTAKES, run_everything)
