"""Blocks of a cluster that train a model together: the bits of one block that has all of it."""

from __future__ import annotations

from typing import Any

import pytest
import simulator
import torch
from cases import device
from engine_runs import OPTIMIZERS, make_batches, make_run
from simulator import Gpu
from torch import Tensor

from charlm import _C, engine

pytestmark = pytest.mark.cuda
assert device.type == "cpu"

# By how many blocks of one model they have room for.
GPUS = {1: Gpu("9.0", 227, multiprocessors=1), 2: Gpu("9.0", 227), 4: Gpu("10.0", 227, multiprocessors=7)}


def results(blocks: int, shape: tuple[int, ...], full_batch: bool, **options: Any) -> list[Tensor]:
    """Losses, parameters and state after some steps on so many blocks."""
    run = make_run(shape, torch.float32, **options)
    state, (batches, rates) = run.new_state(), make_batches(3, 40)
    with simulator.tensors_on(GPUS[blocks]):
        if full_batch:
            counts = run.counts()
            losses = engine.train_full_steps(run.parameters, state, *counts, rates, **run.options)
        else:
            losses = run.fused(batches, rates, state)
    assert _C.last_branch() == ("train_steps/in_cluster" if blocks > 1 else "train_steps/in_block")
    return [losses, *run.parameters, *state]


# (V, T, D, H): strips of units that fill slices and blocks or do not; the 1 behind the units in a strip of its own, or
# not.
@pytest.mark.parametrize("shape", [(11, 3, 3, 16), (11, 3, 3, 17), (27, 3, 5, 50), (5, 2, 2, 28)], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("more", [{}, {"direct": True, "softcap": 2.0, "max_grad_norm": 0.1}], ids=["plain", "more"])
@pytest.mark.parametrize("full_batch", [False, True])
def test_any_number_of_blocks(shape: tuple[int, ...], optimizer: str, more: dict[str, Any], full_batch: bool) -> None:
    options = {**OPTIMIZERS[optimizer], **more}
    one = results(1, shape, full_batch, **options)
    for blocks in (2, 4):
        for found, expected in zip(results(blocks, shape, full_batch, **options), one, strict=True):
            assert torch.equal(found, expected)


def test_a_small_model_has_no_more_blocks_than_slices() -> None:
    for hidden, branch in ((4, "in_block"), (5, "in_cluster")):
        run = make_run((5, 2, 2, hidden), torch.float32)
        with simulator.tensors_on(GPUS[4]):
            run.fused(*make_batches(1, 4))
        assert _C.last_branch() == f"train_steps/{branch}"


def test_before_sm_90_there_are_no_clusters() -> None:
    run = make_run((11, 3, 3, 16), torch.float32)
    with simulator.tensors_on(Gpu("8.0", 163, multiprocessors=8)):
        run.fused(*make_batches(1, 4))
    assert _C.last_branch() == "train_steps/in_block"


def test_blocks_together_have_room_for_a_model_that_one_has_not() -> None:
    shape = (27, 3, 8, 300)
    with simulator.tensors_on(Gpu("9.0", 110, multiprocessors=1)) as index:
        assert _C.trains_in_one_launch(index, *shape, False, False)
        run = make_run(shape, torch.float64)
        losses = make_run(shape, torch.float32).fused(*make_batches(1, 40))
        assert _C.last_branch() == "train_steps/in_cluster"
    torch.testing.assert_close(losses.double(), run.eager(*make_batches(1, 40)), rtol=1e-5, atol=1e-5)
    with simulator.tensors_on(Gpu("8.0", 110)) as index:
        assert not _C.trains_in_one_launch(index, *shape, False, False)
