"""The tests of the ops on the GPU, all of them, and some under compute-sanitizer."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.measure import Task
from benchmarks.gpu.results import Entry
from charlm import environment

ROOT = Path(__file__).resolve().parents[2]

TEST_SECONDS = 200
_MOST_WORKERS = 16

SANITIZED_FILES = (
    "tests/test_cross_entropy.py",
    "tests/test_embedding_linear.py",
    "tests/test_linear_cross_entropy.py",
    "tests/test_mlp_cross_entropy.py",
)
# Tests whose shapes and dtypes take every branch of the kernels. Under a sanitizer they are slow: as many as fit.
SANITIZED = "every_shape_in_every_dtype or equals_reference"
SANITIZER_SECONDS = 60
_SANITIZER_START_SECONDS = 60
# Only kernels of charlm, by their mangled names; but what others write must be seen to be initialised. PyTorch asks the
# driver for what it may not have, and that is no error.
_OURS = ("--kernel-name", "kns=charlm")
SANITIZERS = {
    "memcheck": (*_OURS, "--report-api-errors", "no"),
    "racecheck": _OURS,
    "synccheck": _OURS,
    "initcheck": (),
}
_FOUND_ERRORS = 9
_KEPT_LINES = 60


@dataclass(frozen=True)
class Command:
    arguments: Sequence[str]
    environment: Mapping[str, str]


def test_tasks(logs: Path) -> Iterator[Task]:
    yield Task("tests", partial(run, {"tests": pytest_command()}, TEST_SECONDS, logs))


def sanitizer_tasks(logs: Path) -> Iterator[Task]:
    yield Task("sanitizer", partial(_sanitize, logs))


def pytest_command() -> Command:
    """All tests that run ops where --device says, in several processes where pytest-xdist is installed."""
    arguments = _pytest("--maxfail=50", "--continue-on-collection-errors", "--ignore=tests/cuda_on_cpu")
    if find_spec("xdist") is not None:
        workers = min(_MOST_WORKERS, int(environment.machine()["cores"]))
        arguments += ["-p", "xdist.plugin", "-n", str(workers)]
    return Command(arguments, {"OMP_NUM_THREADS": "1"})


def sanitizer_command(number: int, tool: str) -> Command:
    arguments = ["compute-sanitizer", "--tool", tool, f"--error-exitcode={_FOUND_ERRORS}", *SANITIZERS[tool]]
    # They run side by side, and it is a while before Python gets to the GPU.
    arguments += ["--port", str(49152 + 100 * number), "--launch-timeout", "0"]
    arguments += _pytest("-p", "benchmarks.gpu.as_many_as_fit", f"--seconds={SANITIZER_SECONDS}", "-k", SANITIZED)
    # Each tensor is an allocation, whose bounds are known.
    return Command([*arguments, *SANITIZED_FILES], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"})


def _pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", "cuda", *arguments]


def _sanitize(logs: Path) -> Entry:
    if shutil.which("compute-sanitizer") is None:
        return {"skipped": "compute-sanitizer is not installed"}
    commands = {tool: sanitizer_command(number, tool) for number, tool in enumerate(SANITIZERS)}
    entry = run(commands, SANITIZER_SECONDS + _SANITIZER_START_SECONDS, logs)
    initcheck = entry["commands"]["initcheck"]
    if initcheck["exit_status"] == _FOUND_ERRORS and not reports_of_charlm((logs / "initcheck.log").read_text()):
        initcheck.update(exit_status=0, note="found errors in kernels of others only")
    return entry


def reports_of_charlm(log: str) -> int:
    """How many of a sanitizer's reports are of a kernel of charlm."""
    return len(re.findall(r"^=+ +at (?:void )?charlm::", log, re.MULTILINE))


def run(commands: Mapping[str, Command], limit: float, logs: Path) -> Entry:
    """Runs commands side by side, for at most so many seconds; their whole output goes into a folder."""
    logs.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # No plugin takes part unasked, whatever is installed.
    inherited = {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    processes = {}
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("w") as log:
                processes[name] = subprocess.Popen(
                    command.arguments,
                    cwd=ROOT,
                    env={**inherited, **command.environment},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        return {
            "commands": {
                name: _finish(commands[name], process, started + limit, logs / f"{name}.log")
                for name, process in processes.items()
            }
        }
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _finish(command: Command, process: subprocess.Popen[bytes], deadline: float, log: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"command": shlex.join(command.arguments)}
    try:
        result["exit_status"] = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        result.update(exit_status=124, note="ran out of time")
    lines = log.read_text(errors="replace").strip().splitlines()
    kept = 3 if result["exit_status"] == 0 else _KEPT_LINES
    return {**result, "last_lines": lines[-kept:]}
