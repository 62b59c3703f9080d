"""Training in one block of a GPU: the curve, parameters and state of eager PyTorch, whatever the options and shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import device
from engine_runs import OPTIMIZERS, Run, assert_agrees, make_batches, make_bigram, make_run

from charlm import _C, engine

pytestmark = pytest.mark.cuda

# (V, T, D, H, B): sizes around tiles of 4, one class, one position; a part of a tile, one, several of 32 examples.
SHAPES = [
    (27, 3, 10, 40, 32),
    (27, 3, 4, 17, 90),
    (1, 1, 1, 1, 1),
    (2, 2, 2, 3, 5),
    (5, 16, 3, 32, 33),
    (33, 2, 9, 8, 31),
    (130, 1, 5, 12, 64),
]


def on_device(run: Run) -> Run:
    return replace(
        run,
        model=run.model.to(device),
        contexts=run.contexts.to(device),
        targets=run.targets.to(device),
    )


def pair(shape: tuple[int, ...], **options: Any) -> tuple[Run, Run]:
    """The same run twice, in float64: for eager PyTorch, and on the device."""
    return make_run(shape, torch.float64, **options), on_device(make_run(shape, torch.float64, **options))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_of_every_shape(shape: tuple[int, ...]) -> None:
    batches, rates = make_batches(3, shape[-1])
    for options in ({}, OPTIMIZERS["adamw"]):
        eager, fused = pair(shape, **options)
        losses = fused.fused(batches, rates)
        assert _C.last_branch() == "train_steps/in_block"
        assert_agrees(eager, fused, (eager.eager(batches, rates), losses.cpu()), 1e-10)
