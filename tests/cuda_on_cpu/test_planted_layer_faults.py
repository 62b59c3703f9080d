"""What the simulator is for, in the kernels of embedding_linear: each of these mistakes is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import check, embedding_linear_sample
from planted import WRONG_NUMBERS, barriers_of, edits_of
from simulated import Ops
from simulator import KernelError, Server, build

TABLE, ROWS, SEGMENTS, SUMS = (
    "embedding_linear_table.cuh",
    "embedding_linear_rows.cuh",
    "segmented_sum.cuh",
    "column_sums.cuh",
)
BARRIERS = barriers_of((TABLE, ROWS, SEGMENTS, SUMS))

MISTAKES = [
    (TABLE, "id < vocab_size;", "id < vocab_size + FAULT;", "out of bounds"),
    (TABLE, "if (row >= ids.rows) return;", "if (row >= ids.rows + FAULT) return;", "out of bounds"),
    (TABLE, "i < shape.table_rows; ++i) column", "i < shape.table_rows - FAULT; ++i) column", "nothing has written"),
    (
        TABLE,
        "tables + warp * shape.table_rows * kWarp",
        "tables + (FAULT ? 0 : warp) * shape.table_rows * kWarp",
        "race",
    ),
    (TABLE, "end < p.rows ? end : p.rows;", "end < p.rows ? end : p.rows - FAULT;", WRONG_NUMBERS),
    (TABLE, "table < tables; ++table", "table < tables - FAULT; ++table", WRONG_NUMBERS),
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


@pytest.fixture(scope="session")
def faulty() -> Path:
    return build("embedding_linear", "races", edits_of(BARRIERS, MISTAKES))


def run_everything(program: Path, fault: int) -> None:
    """Every way through the kernels, with one fault at work."""
    server = Server(program)
    try:
        server.plant(fault)
        cuda = Ops(server)
        ids = torch.tensor([[0, 1, 2], [3, 27, 0], [-1, 2, 1]])
        sample = embedding_linear_sample(3).with_arguments(ids=ids)
        assert cuda.embedding_linear(**sample.arguments)[1:].isnan().all()
        for sizes in ((300, 3, 27, 4, 40), (300, 3, 250, 2, 8), (300, 3, 400, 4, 16)):
            check(embedding_linear_sample(*sizes, activation="gelu"), cuda)
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
    with pytest.raises((AssertionError, KernelError), match=MISTAKES[number][3]):
        run_everything(faulty, 1 + len(BARRIERS) + number)
