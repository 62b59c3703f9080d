"""What is run as a command: what the machine is, the tests of the ops on the GPU, and some under compute-sanitizer."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import find_spec

from benchmarks.gpu.processes import Command
from benchmarks.gpu.results import Entry
from charlm import environment

# Of the time that a step has, what is left to start Python and to print what failed.
TEST_SECONDS = 110
SANITIZER_SECONDS = 65
_MOST_WORKERS = 16

SANITIZED_FILES = (
    "tests/test_cuda_training.py",
    "tests/test_cross_entropy.py",
    "tests/test_embedding_linear.py",
    "tests/test_linear_cross_entropy.py",
    "tests/test_linear_log_probs.py",
    "tests/test_log_probs.py",
    "tests/test_mlp_cross_entropy.py",
)
# Tests whose shapes and dtypes take every branch of the kernels. Under a sanitizer they are slow: as many as fit.
SANITIZED = "every_shape_in_every_dtype or equals_reference or steps_of_every_shape"
# Only kernels of charlm, by their mangled names; but what others write must be seen to be initialised. PyTorch asks the
# driver for what it may not have, and that is no error.
_OURS = ("--kernel-name", "kns=charlm")
SANITIZERS = {
    "memcheck": (*_OURS, "--report-api-errors", "no"),
    "racecheck": _OURS,
    "synccheck": _OURS,
    "initcheck": (),
}
FOUND_ERRORS = 9
_MOST_FAILURES = 100


def machine() -> dict[str, Command]:
    return {
        "nvidia-smi": Command(["nvidia-smi", "-q"]),
        "charlm info": Command([sys.executable, "-m", "charlm", "info"]),
        "one op": Command([sys.executable, "-m", "benchmarks.gpu.one_op"]),
    }


def read_machine(name: str, status: int, text: str) -> Entry:
    """The numbers in what was printed."""
    if status != 0:
        return {}
    if name == "one op":
        entry: Entry = json.loads(text.strip().splitlines()[-1])
        return entry
    patterns = {
        "max_sm_mhz": r"Max Clocks\n(?:.*\n)*?\s+SM\s+: ([\d.]+) MHz",
        "max_memory_mhz": r"Max Clocks\n(?:.*\n)*?\s+Memory\s+: ([\d.]+) MHz",
        "power_limit_w": r"(?:Current|Enforced) Power Limit\s+: ([\d.]+) W",
    }
    found = {key: re.search(pattern, text) for key, pattern in patterns.items()} if name == "nvidia-smi" else {}
    return {key: float(match[1]) for key, match in found.items() if match}


def tests() -> dict[str, Command]:
    """All tests that run ops where --device says, in several processes where pytest-xdist is installed."""
    arguments = _pytest(TEST_SECONDS, "--verbose", "--continue-on-collection-errors", "--ignore=tests/cuda_on_cpu")
    if find_spec("xdist") is not None:
        workers = min(_MOST_WORKERS, int(environment.machine()["cores"]))
        # A process whose device is lost is replaced, however many are.
        arguments += ["-p", "xdist.plugin", "-n", str(workers), "--dist=worksteal", "--max-worker-restart=1000"]
    return {"tests": Command(arguments, {"OMP_NUM_THREADS": "1", **_ALONE})}


def read_tests(name: str, status: int, text: str) -> Entry:
    """The first line of what each test that failed said, as the plugin `lost_device` prints it at once."""
    failures = re.findall(r"^failed: (.*)$", text, re.MULTILINE)
    return {"failures": failures[:_MOST_FAILURES]} if failures else {}


def sanitizers() -> dict[str, Command]:
    return {tool: _sanitizer(number, tool) for number, tool in enumerate(SANITIZERS)}


def read_sanitizer(tool: str, status: int, text: str) -> Entry:
    if tool == "initcheck" and status == FOUND_ERRORS and not reports_of_charlm(text):
        return {"run": {"exit_status": 0, "note": "found errors in kernels of others only"}}
    return {}


def reports_of_charlm(log: str) -> int:
    """How many of a sanitizer's reports are of a kernel of charlm."""
    return len(re.findall(r"^=+ +at (?:void )?charlm::", log, re.MULTILINE))


# No plugin takes part unasked, whatever is installed.
_ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _sanitizer(number: int, tool: str) -> Command:
    arguments = ["compute-sanitizer", "--tool", tool, f"--error-exitcode={FOUND_ERRORS}", *SANITIZERS[tool]]
    # They run side by side, and it is a while before Python gets to the GPU.
    arguments += ["--port", str(49152 + 100 * number), "--launch-timeout", "0"]
    arguments += [*_pytest(SANITIZER_SECONDS, "--quiet", "-k", SANITIZED), *SANITIZED_FILES]
    # Each tensor is an allocation, whose bounds are known.
    return Command(arguments, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1", **_ALONE})


def _pytest(seconds: float, *arguments: str) -> list[str]:
    """Without what pyproject.toml says of plugins that may not be installed there, of which pytest would complain; and
    a warning that nobody has met before, as no GPU has run this, is no failure."""
    command = [sys.executable, "-u", "-m", "pytest", "--tb=short", "-p", "no:cacheprovider", "--device", "cuda"]
    command += ["-o", "addopts=-ra --strict-markers -p no:logging", "-W", "default"]
    command += ["-p", "benchmarks.gpu.as_many_as_fit", f"--seconds={seconds}", "-p", "benchmarks.gpu.lost_device"]
    return [*command, *arguments]
