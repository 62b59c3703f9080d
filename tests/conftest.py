"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The same examples in every run, so that a red test is about the change at hand.
settings.register_profile("charlm", deadline=None, derandomize=True)
settings.load_profile("charlm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="where the ops that are checked against the reference run: cpu, cuda, or simulated, which is the bindings "
        "and kernels for CUDA on tensors of the CPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    import cases

    name = config.getoption("--device")
    cases.device = torch.device("cpu" if name == "simulated" else name)
    cases.on_cuda = name == "simulated" or cases.device.type == "cuda"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same state of torch's default generator, in whatever order the tests run."""
    torch.manual_seed(0)


@pytest.fixture
def makemore_names() -> Path:
    """karpathy/makemore's names.txt: a public file that is not part of the project."""
    path = os.environ.get("CHARLM_MAKEMORE_NAMES")
    if path is None:
        pytest.skip("set CHARLM_MAKEMORE_NAMES to the path of makemore's names.txt")
    return Path(path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that names `instruction_set` once with each set of kernels this machine can execute.

    They are the CPU's, so where CUDA's run, once is enough.
    """
    if "instruction_set" in metafunc.fixturenames:
        import cases

        from charlm import _C

        sets = [_C.instruction_set()] if cases.on_cuda else _C.instruction_sets()
        metafunc.parametrize("instruction_set", sets, indirect=True)


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set whose kernels the test runs."""
    from charlm import _C

    before = _C.instruction_set()
    _C.set_instruction_set(request.param)
    yield request.param
    _C.set_instruction_set(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test call `torch.set_num_threads`; the number from before comes back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that this machine has."""
    return request.param
