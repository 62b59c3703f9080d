"""What the simulator is for: each of these mistakes, written into the kernels, is found."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import planted_cross_entropy
import planted_embedding_linear
import planted_mlp_cross_entropy
import pytest
from planted import WRONG_NUMBERS, Fault, edits_of

# The first one waits for the compiler.
pytestmark = pytest.mark.timeout(1200)

ALL = {
    "cross_entropy": planted_cross_entropy.PLANTED,
    "embedding_linear": planted_embedding_linear.PLANTED,
    "mlp_cross_entropy": planted_mlp_cross_entropy.PLANTED,
}
FAULTS = [(op, fault) for op, planted in ALL.items() for fault in planted.faults]


def start() -> None:
    """In a process whose ops run the kernels with the faults."""
    import cases
    import simulator

    cases.on_cuda = True
    simulator.load(edits_of([fault for _, fault in FAULTS]))


def run(op: str, number: int) -> str:
    """What is found with one fault at work, or with none."""
    import simulator

    simulator.watch(True)
    simulator.plant(number)
    try:
        ALL[op].run_everything()
    except (AssertionError, RuntimeError) as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def faulty() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start) as pool:
        yield pool


@pytest.mark.parametrize("op", ALL)
def test_without_a_fault_all_is_well(op: str, faulty: ProcessPoolExecutor) -> None:
    assert faulty.submit(run, op, 0).result() == ""


def test_the_call_after_a_fault_is_like_any_other(faulty: ProcessPoolExecutor) -> None:
    assert faulty.submit(run, "cross_entropy", 1).result().startswith("CUDA error: ")
    assert faulty.submit(run, "cross_entropy", 0).result() == ""


@pytest.mark.parametrize(
    ("op", "number", "fault"),
    [
        pytest.param(op, number, fault, id=f"{op}: {fault.file}: {fault.wrong.strip()}, {fault.occurrence}")
        for number, (op, fault) in enumerate(FAULTS, 1)
    ],
)
def test_a_fault_is_found(op: str, number: int, fault: Fault, faulty: ProcessPoolExecutor) -> None:
    found = faulty.submit(run, op, number).result()
    assert re.search(fault.shows_as, found), found
    # What the watch sees is an error of the launch.
    assert found.startswith("CUDA error: ") or WRONG_NUMBERS in fault.shows_as
