"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import CommandLine

# The workers of pytest-xdist share the cores. With several threads each they would wait for one another, twenty times
# as long as they work; and threads that a test asks for should sleep while they wait. OpenMP reads both when torch is
# imported, which is why nothing above imports it; what a test starts inherits them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# What torch has compiled it keeps for later runs, by what is in a graph. The shapes of an op's results, which its fake
# says, are not: a graph of an older charlm would be taken for one of this.
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="where the ops that are checked against the reference run: cpu, cuda, or simulated, which is the bindings "
        "and kernels for CUDA on tensors of the CPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("dist", "no") != "no":
        return  # this process of pytest-xdist runs no tests: it need not wait for torch before it starts those that do
    import cases
    import torch
    from hypothesis import settings

    # The same examples in every run, so that a red test is about the change at hand.
    settings.register_profile("charlm", deadline=None, derandomize=True)
    settings.load_profile("charlm")
    name = config.getoption("--device")
    cases.device = torch.device("cpu" if name == "simulated" else name)
    cases.on_cuda = name == "simulated" or cases.device.type == "cuda"
    # What torch's deterministic mode asks for on a GPU. It reads this once.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if name == "simulated":
        import planted_all
        import simulator

        simulator.load(planted_all.edit)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what does not ask where the ops run, where that is not the CPU, and what takes a simulator hours."""
    import cases
    import torch

    left_out = {"cpu": {"cuda"}, "simulated": {"cpu", "vast"}}.get(config.getoption("--device"), {"cpu"})
    if cases.device.type == "cuda" and torch.cuda.device_count() < 2:
        left_out = left_out | {"two_gpus"}
    kept, deselected = [], []
    for item in items:
        runs_there = not cases.on_cuda or item.get_closest_marker("cuda") is not None or _uses_cases(item)
        runs_there = runs_there and not any(item.get_closest_marker(name) for name in left_out)
        (kept if runs_there else deselected).append(item)
    config.hook.pytest_deselected(items=deselected)
    items[:] = kept


def _uses_cases(item: pytest.Item) -> bool:
    """Whether anything in its file is from cases.py, which has the device and what makes tensors there."""
    import cases

    names = vars(item.getparent(pytest.Module).obj).values()  # type: ignore[union-attr]
    return any(
        value is cases or value is cases.device or getattr(value, "__module__", "") == "cases" for value in names
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same state of torch's default generator, in whatever order the tests run."""
    import cases
    import torch

    torch.default_generator.manual_seed(0)
    # torch.manual_seed would note the call for each kind of device, also those that are not there, which takes 2 ms.
    if cases.device.type == "cuda":
        torch.cuda.manual_seed_all(0)


# What watching takes long in, and finds no more in than in the tests of the ops: many calls of few shapes.
_UNWATCHED = ("compile", "export", "graphed", "opinfo", "patched_torch", "tracing", "training", "training_devices")
_UNWATCHED += ("training_state", "transforms", "vocab_parallel", "vocab_parallel_log_probs")


@pytest.fixture(autouse=True)
def reorder(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Has threads and blocks of kernels run in another order from now on, where a simulator decides it.

    It watches what they do, in the same order in every run of a test; but not where the same code is called hundreds of
    times, as by checks of a gradient by differences.
    """
    if request.config.getoption("--device") != "simulated":
        return lambda seed: None
    import simulator

    file = request.node.path.stem.removeprefix("test_")
    simulator.watch(file not in _UNWATCHED and "gradcheck" not in request.node.name)
    return lambda seed: simulator.watch(True, seed)


@pytest.fixture
def makemore_names() -> Path:
    """karpathy/makemore's names.txt: a public file that is not part of the project."""
    path = os.environ.get("CHARLM_MAKEMORE_NAMES")
    if path is None:
        pytest.skip("set CHARLM_MAKEMORE_NAMES to the path of makemore's names.txt")
    return Path(path)


@pytest.fixture
def run_charlm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CommandLine:
    """The command line in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHARLM_DEBUG", raising=False)
    return CommandLine(capsys)


@pytest.fixture(scope="session")
def fifty_names() -> str:
    """Fifty names of five letters, a line each."""
    lines = ["".join("aeiklmnrst"[(i * step + step) % 10] for step in (1, 3, 7, 2, 9)) for i in range(50)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def names(tmp_path: Path, fifty_names: str) -> Path:
    """A file of the fifty names."""
    path = tmp_path / "names.txt"
    path.write_text(fifty_names)
    return path


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

    _C.set_instruction_set(request.param)
    yield request.param
    _C.set_instruction_set(None)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test call `torch.set_num_threads`; the number from before comes back."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Signals do what they do in a terminal, also where whoever started the tests has had them ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {signum: signal.signal(signum, handler) for signum, handler in usual.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
