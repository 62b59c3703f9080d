"""linear_cross_entropy of 8,192 bfloat16 tokens and the output layers of two large models, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Step, Workload
from benchmarks.opponents import contestants

# (N, D, C): Llama 3 8B, as in Liger's figures, and Gemma 2 2B, as in those of Cut Cross Entropy.
SHAPES = ((8192, 4096, 128256), (8192, 2304, 256000))

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def workloads() -> Iterator[Workload]:
    return (workload(*shape) for shape in SHAPES)


def workload(rows: int, features: int, classes: int) -> Workload:
    return Workload(
        f"linear_cross_entropy N={rows:,} D={features:,} C={classes:,}, forward + backward",
        tuple(IMPLEMENTATIONS),
        lambda: _create(rows, features, classes),
        {
            "rows": rows,
            "features": features,
            "classes": classes,
            "flops": product_flops(rows, features, classes),
            "ceiling": "bf16 product",
        },
    )


def product_flops(rows: int, features: int, classes: int) -> int:
    """Of three products: logits, the gradient of the input, the gradient of the weight."""
    return 6 * rows * features * classes


def _create(rows: int, features: int, classes: int) -> Callable[[str], Step]:
    input = torch.randn(rows, features, dtype=torch.bfloat16, device=measure.DEVICE, requires_grad=True)
    # Scaled as a trained layer is.
    weight = torch.randn(classes, features, dtype=torch.bfloat16, device=measure.DEVICE)
    weight = weight.div_(features**0.5).requires_grad_()
    target = torch.randint(classes, (rows,), device=measure.DEVICE)

    def step(name: str) -> Step:
        loss = IMPLEMENTATIONS[name]()

        def run() -> list[Tensor]:
            value = loss(input, weight, target)
            return [value, *torch.autograd.grad(value, (input, weight))]

        return run

    return step


def _liger() -> Loss:
    from liger_kernel.ops import (  # type: ignore[import-not-found, unused-ignore]
        LigerFusedLinearCrossEntropyFunction,
    )

    # The loss comes first.
    return lambda input, weight, target: LigerFusedLinearCrossEntropyFunction.apply(input, weight, target)[0]


def _cce(**options: None) -> Loss:
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found, unused-ignore]

    return lambda input, weight, target: linear_cross_entropy(input, weight, target, **options)


def _unfiltered_cce() -> Loss:
    """Without its shortcut past small probabilities: random numbers have far more of them than a trained model."""
    return _cce(filter_eps=None)


def _quack() -> Loss:
    from quack.linear_cross_entropy import (  # type: ignore[import-not-found, unused-ignore]
        chunked_linear_cross_entropy,
    )

    return lambda input, weight, target: chunked_linear_cross_entropy(input, weight, target, chunk_size=4096)


IMPLEMENTATIONS: dict[str, Callable[[], Loss]] = {
    **contestants("linear_cross_entropy"),
    "liger": _liger,
    "cce": _cce,
    "cce unfiltered": _unfiltered_cce,
    "quack": _quack,
}
