"""linear_cross_entropy against eager PyTorch and torch.compile, forward and backward, one thread.

Floor: three matrix products of 2 N D V operations each: logits, the gradient of the input, the gradient of the weight.
"""

from typing import Any

import pytest
import torch

from benchmarks.common import implementations, measure, product_seconds
from benchmarks.opponents import contestants

# The first lets the logits lie in the memory of the weight's gradient, the second goes in chunks.
SHAPES = ((512, 512, 32000), (2048, 256, 8000))


@implementations
@pytest.mark.parametrize(("rows", "features", "classes"), SHAPES)
def test_forward_and_backward(benchmark: Any, rows: int, features: int, classes: int, implementation: str) -> None:
    torch.manual_seed(0)
    input = torch.randn(rows, features, requires_grad=True)
    # Scaled as a trained layer is. Logits of +-50 instead would give eager gradients full of denormals, and make it 20
    # times slower; ours flushes them.
    weight = (torch.randn(classes, features) / features**0.5).requires_grad_()
    target = torch.randint(classes, (rows,))
    loss = contestants("linear_cross_entropy")[implementation]()

    def step() -> None:
        input.grad = weight.grad = None
        loss(input, weight, target).backward()

    measure(
        benchmark,
        f"linear_cross_entropy N={rows} D={features} V={classes}",
        step,
        floor="three matrix products",
        floor_seconds=product_seconds(6.0 * rows * features * classes),
    )
