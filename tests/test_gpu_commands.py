"""What `python -m benchmarks.gpu` runs beside measurements: the tests on a GPU, compute-sanitizer, Nsight Compute."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import commands, profile, profiled
from benchmarks.gpu.processes import ROOT
from charlm import ops


def run_pytest(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_the_tests_can_be_run() -> None:
    """As they are run, with no plugin that happens to be installed here, but to collect them only."""
    command = commands.tests()["tests"]
    arguments = list(command.arguments)
    assert arguments[arguments.index("--device") + 1] == "cuda"
    assert "-n" in arguments  # pytest-xdist is installed here
    end = arguments.index("xdist.plugin") - 1
    arguments[arguments.index("cuda")] = "cpu"
    result = run_pytest([*arguments[:end], "--collect-only", "tests/test_zero_sizes.py"], **command.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "<Module test_zero_sizes.py>" in result.stdout


def test_the_sanitizers_can_be_run() -> None:
    training, *files = commands.SANITIZED_FILES
    assert {f"tests/test_{op}.py" for op in ops.reference.__all__} == set(files)
    table = commands.sanitizers()
    assert list(table) == ["memcheck", "racecheck", "synccheck", "initcheck"]
    ports = set()
    for tool, command in table.items():
        arguments = list(command.arguments)
        assert arguments[:3] == ["compute-sanitizer", "--tool", tool]
        ports.add(arguments[arguments.index("--port") + 1])
    assert len(ports) == 4
    # What follows compute-sanitizer's options is pytest's command line: it selects tests of every op.
    arguments = arguments[arguments.index(sys.executable) :]
    arguments[arguments.index("cuda")] = "cpu"
    result = run_pytest([*arguments, "--collect-only"], **command.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    for path in files:
        assert path in result.stdout
    # Its tests are for GPUs only, and left out here.
    assert "def test_steps_of_every_shape" in (ROOT / training).read_text()


def test_the_parts_of_a_step_end_before_it() -> None:
    from benchmarks.gpu.steps import STEPS

    seconds = {step.name: step.seconds for step in STEPS}
    assert seconds["tests"] - 20 >= commands.TEST_SECONDS
    assert seconds["sanitizer"] - 20 >= commands.SANITIZER_SECONDS


def test_reports_of_a_sanitizer() -> None:
    log = """
========= Invalid __global__ read of size 4 bytes
=========     at void charlm::cuda::<unnamed>::narrow_rows<float, (bool)1>(charlm::cuda::Rows)+0x1a0
=========     Host Frame: charlm::launch [0x1234] in _C.abi3.so
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<(int)4>(int)+0x60
========= ERROR SUMMARY: 2 errors
"""
    assert commands.reports_of_charlm(log) == 1
    others = log.replace("at void charlm::cuda", "at void other::cuda")
    assert commands.reports_of_charlm(others) == 0
    # Errors of others are not ours, where all that is read is watched.
    assert commands.read_sanitizer("initcheck", 9, log) == {}
    assert commands.read_sanitizer("initcheck", 9, others)["run"]["exit_status"] == 0
    assert commands.read_sanitizer("initcheck", 1, others) == {}
    assert commands.read_sanitizer("memcheck", 9, others) == {}


def test_what_the_machine_says() -> None:
    text = """
    Clocks
        SM                                : 345 MHz
        Memory                            : 2619 MHz
    Max Clocks
        Graphics                          : 1980 MHz
        SM                                : 1980 MHz
        Memory                            : 2619 MHz
    GPU Power Readings
        Current Power Limit               : 700.00 W
"""
    expected = {"max_sm_mhz": 1980.0, "max_memory_mhz": 2619.0, "power_limit_w": 700.0}
    assert commands.read_machine("nvidia-smi", 0, text) == expected
    assert commands.read_machine("nvidia-smi", 9, text) == {}
    assert commands.read_machine("charlm info", 0, text) == {}
    assert commands.read_machine("one op", 0, 'a warning\n{"import_s": 2.5}\n') == {"import_s": 2.5}


PROFILE = """
==PROF== Connected to process 77 (/usr/bin/python3.12)
==PROF== Profiling "wide_rows" - 0: 0%....50%....100% - 12 passes
[77] python3.12@127.0.0.1
  void charlm::cuda::<unnamed>::wide_rows<__nv_bfloat16, (bool)1>(int, float) (8192, 1, 1)x(256, 1, 1), Context 1
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    Metric Name             Metric Unit Metric Value
    ----------------------- ----------- ------------
    DRAM Frequency                  Ghz         2.62
    Elapsed Cycles                cycle      364,125
    Memory Throughput                 %        61.35
    DRAM Throughput                   %        60.02
    Duration                         us     1,228.22
    Compute (SM) Throughput           %        45.10
    ----------------------- ----------- ------------

    Section: Memory Workload Analysis
    Memory Throughput    Tbyte/s            1.99

    Section: Occupancy
    Theoretical Occupancy                     %          100
    Achieved Occupancy                        %        88.31
    OPT   This kernel is limited. Duration  %  12
  void charlm::cuda::<unnamed>::reduce_parts<float>(int) (1, 1, 1)x(1024, 1, 1), Context 1
    Section: GPU Speed Of Light Throughput
    Duration                         ns          950
"""


def test_what_nsight_compute_says() -> None:
    wide, reduce = profile.read("ncu wide", 0, PROFILE)["kernels"]
    assert wide == {
        "kernel": "void charlm::cuda::<unnamed>::wide_rows<__nv_bfloat16, (bool)1>(int, float)",
        "memory_percent": 61.35,
        "dram_percent": 60.02,
        "duration_s": pytest.approx(1228.22e-6),
        "compute_percent": 45.1,
        "occupancy_percent": 88.31,
    }
    assert reduce["duration_s"] == pytest.approx(950e-9)
    refusal = "==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n==ERROR== The application returned 11.\n"
    skipped = {"skipped": "Nsight Compute: Failed to initialize the profiler: LibraryNotLoaded"}
    assert profile.read("ncu wide", 1, refusal) == skipped
    assert profile.read("ncu wide", 1, f"Traceback (most recent call last):\n{refusal}") == {}
    assert profile.read("ncu wide", 0, "==WARNING== No kernels were profiled.") == {
        "error": "no kernel of charlm was profiled"
    }


def test_what_nsight_compute_is_asked() -> None:
    table = profile.commands()
    assert set(table) == {f"ncu {call}" for call in profiled.CALLS}
    arguments = list(table["ncu sum_table_rows"].arguments)
    assert arguments[0] == "ncu"
    assert arguments[-4:] == [sys.executable, "-m", "benchmarks.gpu.profiled", "sum_table_rows"]
    for option, value in (("--clock-control", "none"), ("--target-processes", "all"), ("--profile-from-start", "off")):
        assert arguments[arguments.index(option) + 1] == value
    pattern = arguments[arguments.index("--kernel-name") + 1].removeprefix("regex:")
    assert re.search(pattern, "void charlm::cuda::<unnamed>::wide_rows<float>(int)")
    assert not re.search(pattern, "void at::native::reduce_kernel<512>(int)")


@pytest.fixture
def pytest_of(tmp_path: Path) -> list[str]:
    """pytest with a folder of tests, and no plugin but those that are named."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", f"--rootdir={tmp_path}"]
    return [*command, "-c", os.devnull, str(tmp_path)]


@pytest.mark.parametrize(("seconds", "summary"), [("0", "3 skipped"), ("60", "3 passed")])
@pytest.mark.parametrize("workers", [[], ["-p", "xdist.plugin", "-n", "2"]])
def test_as_many_tests_as_fit(
    seconds: str, summary: str, workers: list[str], pytest_of: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "test_three.py"
    path.write_text("import pytest\n\n@pytest.mark.parametrize('x', range(3))\ndef test(x):\n    assert x < 3\n")
    options = ["-p", "benchmarks.gpu.as_many_as_fit", f"--seconds={seconds}", *workers]
    result = run_pytest([*pytest_of, *options], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f" {summary} in " in result.stdout


# A device that the third test ruins, for its process.
LOSES = """
import sys, types
import pytest

class Cuda:
    is_lost = False
    def synchronize(self):
        if self.is_lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

sys.modules["torch"] = types.ModuleType("torch")
cuda = sys.modules["torch"].cuda = Cuda()

@pytest.mark.parametrize("number", range(8))
def test(number):
    if number == 2:
        cuda.is_lost = True
    if number == 5:
        raise RuntimeError("CUDA error: of an argument, after which all goes on")
    cuda.synchronize()
"""


def test_a_lost_device_ends_its_process_and_no_other_test(pytest_of: list[str], tmp_path: Path) -> None:
    (tmp_path / "test_loses.py").write_text(LOSES)
    options = ["-v", "-p", "benchmarks.gpu.lost_device", "-p", "xdist.plugin", "-n", "1", "--dist=worksteal"]
    result = run_pytest([*pytest_of, *options], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert " 6 passed" in result.stdout
    said = commands.read_tests("tests", result.returncode, result.stdout)["failures"]
    name = "test_loses.py::test"
    assert said[0] == f"{name}[2]: RuntimeError: CUDA error: an illegal memory access was encountered"
    # The worker that ended is told of as well, with the test that it ran.
    assert said[1] == f"{name}[2]: worker 'gw0' crashed while running '{name}[2]'"
    assert said[2:] == [f"{name}[5]: RuntimeError: CUDA error: of an argument, after which all goes on"]


def test_without_workers_a_lost_device_ends_the_run(pytest_of: list[str], tmp_path: Path) -> None:
    (tmp_path / "test_loses.py").write_text(LOSES)
    result = run_pytest([*pytest_of, "-p", "benchmarks.gpu.lost_device"], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert result.returncode == 1
    assert "the GPU can be used no more" in result.stdout
    assert " 1 failed, 2 passed in " in result.stdout


def test_a_test_that_hangs_ends_its_process(pytest_of: list[str], tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from benchmarks.gpu import lost_device\nlost_device.TEST_SECONDS = 3\n")
    (tmp_path / "test_hangs.py").write_text("import time\n\ndef test_a():\n    time.sleep(600)\n\ndef test_b(): ...\n")
    options = ["-p", "benchmarks.gpu.lost_device", "-p", "xdist.plugin", "-n", "1"]
    result = run_pytest([*pytest_of, *options], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert " 1 failed, 1 passed in " in result.stdout, result.stdout
    assert "crashed while running 'test_hangs.py::test_a'" in result.stdout
    assert 'test_hangs.py", line 4 in test_a' in result.stderr + result.stdout
