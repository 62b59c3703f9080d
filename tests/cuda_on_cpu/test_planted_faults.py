"""What the simulator is for: each of these mistakes, written into the kernels, is found."""

from __future__ import annotations

import planted_cross_entropy
import planted_embedding_linear
import planted_mlp_cross_entropy
import pytest
from planted import WRONG_NUMBERS, Planted
from simulator import KernelError

ALL = (planted_cross_entropy.PLANTED, planted_embedding_linear.PLANTED, planted_mlp_cross_entropy.PLANTED)
BARRIERS = [
    pytest.param(planted, number, id=f"{planted.op}: {file}, barrier {i}")
    for planted in ALL
    for number, (file, i) in enumerate(planted.barriers, 1)
]
MISTAKES = [
    pytest.param(planted, number, shows_as, id=f"{planted.op}: {wrong.strip()}")
    for planted in ALL
    for number, (_, _, wrong, shows_as) in enumerate(planted.mistakes, 1 + len(planted.barriers))
]


@pytest.mark.parametrize("planted", ALL, ids=lambda planted: planted.op)
def test_without_a_fault_all_is_well(planted: Planted) -> None:
    planted.run(0)


@pytest.mark.parametrize(("planted", "number"), BARRIERS)
def test_a_missing_barrier_is_found(planted: Planted, number: int) -> None:
    with pytest.raises(KernelError, match=r"a race|nothing has written"):
        planted.run(number)


@pytest.mark.parametrize(("planted", "number", "shows_as"), MISTAKES)
def test_a_mistake_is_found(planted: Planted, number: int, shows_as: str) -> None:
    errors = AssertionError if shows_as == WRONG_NUMBERS else (AssertionError, KernelError)
    with pytest.raises(errors, match=shows_as):
        planted.run(number)
