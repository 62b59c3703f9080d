"""cross_entropy against eager PyTorch and torch.compile, forward and backward, one thread.

Floor: each logit read once, each gradient written once (8 bytes a logit in float32), while e^z is computed.
"""

from typing import Any

import pytest
import torch

from benchmarks.common import copy_seconds, implementations, measure
from benchmarks.opponents import contestants

SHAPES = ((32, 27), (4096, 27), (4096, 1000), (2048, 32000))


@implementations
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_forward_and_backward(benchmark: Any, rows: int, classes: int, implementation: str) -> None:
    torch.manual_seed(0)
    input = torch.randn(rows, classes, requires_grad=True)
    target = torch.randint(classes, (rows,))
    loss = contestants("cross_entropy")[implementation]()

    def step() -> None:
        input.grad = None
        loss(input, target).backward()

    measure(
        benchmark,
        f"cross_entropy N={rows} C={classes}",
        step,
        floor="logits read, gradient written",
        floor_seconds=copy_seconds(4 * rows * classes),
    )
