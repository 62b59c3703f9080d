"""cross_entropy of bfloat16 logits, forward, and forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Step, Workload
from benchmarks.opponents import contestants

# (N, C): quack publishes from 256 classes on, with fewer rows of more than 65,536; 27 are the symbols of names.
SHAPES = (
    (1 << 20, 27),
    *((32768, classes) for classes in (256, 1024, 4096, 16384, 32768, 65536)),
    (16384, 131072),
    (8192, 262144),
)
# Of quack's forward pass on an H100 with 3.35 TB/s, by classes: Dao-AILab/quack, "Getting memory-bound kernels to
# speed-of-light", 2025.
QUACK_GB_PER_S = {256: 1113, 1024: 1902, 4096: 2692, 16384: 3061, 32768: 3021, 65536: 3182, 131072: 3163, 262144: 3034}
_H100_GB_PER_S = 3350

Loss = Callable[[Tensor, Tensor], Tensor]


def workloads() -> Iterator[Workload]:
    for rows, classes in SHAPES:
        for backward in (False, True):
            yield workload(rows, classes, backward=backward)


def workload(rows: int, classes: int, *, backward: bool) -> Workload:
    facts: dict[str, Any] = {"rows": rows, "classes": classes}
    facts |= {"bytes": moved_bytes(rows, classes, backward=backward), "ceiling": "copy"}
    if not backward and classes in QUACK_GB_PER_S:
        facts["published_share"] = QUACK_GB_PER_S[classes] / _H100_GB_PER_S
    return Workload(
        f"cross_entropy N={rows:,} C={classes:,}, forward{' + backward' * backward}",
        tuple(IMPLEMENTATIONS),
        lambda: _create(rows, classes, backward=backward),
        facts,
    )


def moved_bytes(rows: int, classes: int, *, backward: bool, element_size: int = 2) -> int:
    """What must be moved: logits and targets read and a loss a row written; backward, logits again and gradients."""
    logits = rows * classes * element_size
    each_row = rows * (8 + element_size)
    return logits + each_row + (2 * logits + each_row if backward else 0)


def inputs(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits and targets."""
    logits = torch.randn(rows, classes, dtype=torch.bfloat16, device=measure.DEVICE)
    return logits, torch.randint(classes, (rows,), device=measure.DEVICE)


def _create(rows: int, classes: int, *, backward: bool) -> Callable[[str], Step]:
    logits, target = inputs(rows, classes)

    def step(name: str) -> Step:
        loss = IMPLEMENTATIONS[name]()
        # Of its own, as Liger overwrites it.
        own = logits.clone().requires_grad_(backward)

        def run() -> list[Tensor]:
            losses = loss(own, target)
            if not backward:
                return [losses]
            # A gradient of one for each row's loss, which is that of their sum.
            return [losses, *torch.autograd.grad(losses, own, torch.ones_like(losses))]

        return run

    return step


def _quack() -> Loss:
    from quack.cross_entropy import cross_entropy  # type: ignore[import-not-found, unused-ignore]

    return lambda logits, target: cross_entropy(logits, target, reduction="none")


def _liger() -> Loss:
    """Its sum of the losses, for which it has the gradient after forward: for losses of rows it takes a second pass."""
    # Its modules for users need transformers as well.
    from liger_kernel.ops import LigerCrossEntropyFunction  # type: ignore[import-not-found, unused-ignore]

    # The options are no class weights, ignore_index, no penalty, no smoothing, and the reduction. The loss comes first.
    return lambda logits, target: LigerCrossEntropyFunction.apply(logits, target, None, -100, 0.0, 0.0, "sum")[0]


IMPLEMENTATIONS: dict[str, Callable[[], Loss]] = {
    **contestants("cross_entropy", reduction="none"),
    "quack": _quack,
    "liger": _liger,
}
