"""What the simulator is for: each of these mistakes, written into the kernels, is found."""

from __future__ import annotations

import re

import pytest
import simulator
from planted import WRONG_NUMBERS, Fault
from planted_all import FAULTS, PLANTED

pytestmark = pytest.mark.cuda


def find(op: str, number: int) -> str:
    """What is found with one fault at work, or with none."""
    simulator.plant(number)
    try:
        PLANTED[op].run_everything()
    except (AssertionError, RuntimeError) as error:
        return str(error)
    finally:
        simulator.plant(0)
    return ""


@pytest.mark.parametrize("op", PLANTED)
def test_without_a_fault_all_is_well(op: str) -> None:
    assert find(op, 0) == ""


def test_the_call_after_a_fault_is_like_any_other() -> None:
    assert find("cross_entropy", 1).startswith("CUDA error: ")
    assert find("cross_entropy", 0) == ""


@pytest.mark.parametrize(
    ("op", "number", "fault"),
    [
        pytest.param(op, number, fault, id=f"{op}: {fault.file}: {fault.wrong.strip()}, {fault.occurrence}")
        for number, (op, fault) in enumerate(FAULTS, 1)
    ],
)
def test_a_fault_is_found(op: str, number: int, fault: Fault) -> None:
    fault.edit((simulator.KERNELS / fault.file).read_text(), number)  # it has been planted
    found = find(op, number)
    assert re.search(fault.shows_as, found), found
    # What the watch sees is an error of the launch.
    assert found.startswith("CUDA error: ") or WRONG_NUMBERS in fault.shows_as
