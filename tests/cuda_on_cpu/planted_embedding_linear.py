"""Faults in the kernels of embedding_linear, and in those that it shares with the other layers."""

from __future__ import annotations

from cases import check, embedding_linear_sample, evaluate
from planted import WRONG_NUMBERS, Fault, Planted, missing_barriers

TABLE, ROWS, COLUMN, KEYS, SEGMENTS, SUMS = (
    "embedding_linear_table.cuh",
    "embedding_linear_rows.cuh",
    "table_column.cuh",
    "token_keys.cuh",
    "segmented_sum.cuh",
    "column_sums.cuh",
)

MISTAKES = [
    Fault(KEYS, "values[i] < vocab_size;", "values[i] < vocab_size + FAULT;", "out of bounds"),
    Fault(
        KEYS,
        "at = position + i < ids.context_length",
        "at = position + i < ids.context_length + FAULT",
        "out of bounds|" + WRONG_NUMBERS,
    ),
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
    Fault(TABLE, "key[i][r] > 0 ?", "key[i][r] > 0 || FAULT ?", "out of bounds"),
    Fault(TABLE, "row[r] > 0 ?", "row[r] > 0 || FAULT ?", "out of bounds"),
    Fault(COLUMN, "keys[i] > 0 ?", "keys[i] > 0 || FAULT ?", "out of bounds|a race"),
    Fault(TABLE, "valid[r] ? bias[i]", "valid[r] || FAULT ? bias[i]", WRONG_NUMBERS),
    Fault(TABLE, "r < rows && keys[r][0] >= 0", "(FAULT || r < rows) && keys[r][0] >= 0", WRONG_NUMBERS),
    Fault(ROWS, "return first < count;", "return first < count + FAULT;", "out of bounds"),
    Fault(ROWS, "(blockDim.y) < count; }", "(blockDim.y) < count + FAULT; }", "out of bounds"),
    Fault(ROWS, "keys_at[r] > 0 ?", "keys_at[r] > 0 || FAULT ?", "out of bounds"),
    Fault(SEGMENTS, "j >= 0 && j < count", "j >= 0 && j < count + FAULT", "out of bounds"),
    Fault(
        SEGMENTS,
        "run == begin && begins_earlier",
        "run == begin && begins_earlier && !FAULT",
        "a race|nothing has written",
    ),
    Fault(SEGMENTS, "last && ends_later", "last && ends_later && !FAULT", "nothing has written"),
    Fault(SEGMENTS, "first + k <= last) sum", "first + k <= last - FAULT) sum", WRONG_NUMBERS),
    Fault(SEGMENTS, "return last + in_run;", "return last + in_run - FAULT;", WRONG_NUMBERS),
    Fault(SEGMENTS, "keys[k + 1] == keys[k]) continue", "keys[k + 1] == keys[k] && !FAULT) continue", "a race"),
    Fault(  # behind the last row may be any other memory
        SUMS,
        "row < last; row += kSumAhead",
        "row < last + FAULT; row += kSumAhead",
        "out of bounds|nothing has written|a race|" + WRONG_NUMBERS,
    ),
    Fault(SUMS, "kSumRows < last) sum", "kSumRows < last + FAULT) sum", WRONG_NUMBERS),
    Fault(SUMS, "int i = 1; i < kSumRows;", "int i = 1; i < kSumRows - FAULT;", WRONG_NUMBERS),
]


def run_everything() -> None:
    """Every way through the kernels."""
    for rows in (3, 301):  # gathered; projected
        sample = embedding_linear_sample(rows, activation="gelu")
        ids = sample.arguments["ids"].clone()
        ids[1, 1], ids[2, 0] = 27, -1
        values = evaluate(sample.with_arguments(ids=ids))
        bad = [n for n in range(rows) if values["result"][n].isnan().any()]
        assert bad == [1, 2], f"NaN in the rows {bad} instead of 1 and 2"
        assert values["gradient of weight"].isfinite().all(), "NaN instead of the gradient of the other rows"
    for sizes in ((301, 3, 27, 4, 40), (300, 3, 250, 2, 8), (300, 3, 400, 4, 16)):
        check(embedding_linear_sample(*sizes, activation="gelu"))


PLANTED = Planted([*missing_barriers((TABLE, ROWS, KEYS, SEGMENTS, SUMS)), *MISTAKES], run_everything)
