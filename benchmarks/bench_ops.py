"""Every op against eager PyTorch and torch.compile in float32, forward and backward, one thread: the rows of `grid.py`.

`python -m benchmarks ops` measures the same in other dtypes and on more threads, round by round, and says which op is
too slow.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.ceilings import best_product_rate
from benchmarks.common import implementations, measure
from benchmarks.grid import ROWS, Row


@implementations
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_forward_and_backward(benchmark: Any, row: Row, implementation: str) -> None:
    case = row.create(torch.float32)
    measure(
        benchmark,
        row.name,
        partial(case.contestants[implementation](), 1),
        floor=case.floor.words,
        floor_seconds=case.floor.seconds(best_product_rate(torch.float32)),
    )
