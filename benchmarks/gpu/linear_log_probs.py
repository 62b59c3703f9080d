"""linear_log_probs of bfloat16 tokens: what trainers of policies take from an output layer, forward and with backward.

Eager PyTorch is in the way of TRL, which holds the logits, and takes 128 rows at a time from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Step, Workload
from benchmarks.opponents import contestants

# (N, D, C): Llama 3 8B, and a middle-sized model with the tokens of GPT-2.
SHAPES = ((8192, 4096, 128256), (4096, 2048, 50257))

IMPLEMENTATIONS = contestants("linear_log_probs")


def workloads() -> Iterator[Workload]:
    for rows, features, classes in SHAPES:
        for backward in (False, True):
            yield workload(rows, features, classes, backward=backward)


def workload(rows: int, features: int, classes: int, *, backward: bool) -> Workload:
    products = 4 if backward else 1  # logits; with backward logits again, the gradients of the input and of the weight
    return Workload(
        f"linear_log_probs N={rows:,} D={features:,} C={classes:,}, forward{' + backward' * backward}",
        tuple(IMPLEMENTATIONS),
        lambda: _create(rows, features, classes, backward=backward),
        {
            "rows": rows,
            "features": features,
            "classes": classes,
            "products": products,
            "flops": products * 2 * rows * features * classes,
            "ceiling": "bf16 product",
        },
    )


def _create(rows: int, features: int, classes: int, *, backward: bool) -> Callable[[str], Step]:
    input = torch.randn(rows, features, dtype=torch.bfloat16, device=measure.DEVICE, requires_grad=backward)
    # Scaled as a trained layer is.
    weight = torch.randn(classes, features, dtype=torch.bfloat16, device=measure.DEVICE)
    weight = weight.div_(features**0.5).requires_grad_(backward)
    ids = torch.randint(classes, (rows,), device=measure.DEVICE)

    def step(name: str) -> Step:
        objective = IMPLEMENTATIONS[name]()

        def run() -> list[Tensor]:
            values = objective(input, weight, ids)
            if not backward:
                return [values]
            return [values, *torch.autograd.grad(values.sum(), (input, weight))]

        return run

    return step
