"""What `python -m benchmarks.gpu` runs beside measurements: the tests on a GPU, and compute-sanitizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import commands
from benchmarks.gpu.results import Entry
from charlm import ops


def test_commands_run_side_by_side_and_are_stopped_in_time(tmp_path: Path) -> None:
    def python(program: str, **environment: str) -> commands.Command:
        return commands.Command([sys.executable, "-c", program], environment)

    entry = commands.run(
        {
            "fine": python("import os; print('one'); print(os.environ['WORD'], os.environ['PYTHONPATH'])", WORD="two"),
            "bad": python("import sys; print(1); sys.exit(9)"),
            "slow": python("import time; print('began', flush=True); time.sleep(60)"),
        },
        limit=3.0,
        logs=tmp_path / "logs",
    )
    fine, bad, slow = entry["commands"].values()
    assert fine["exit_status"] == 0
    assert fine["last_lines"][0] == "one"
    assert fine["last_lines"][1].startswith(f"two {commands.ROOT}")
    assert (bad["exit_status"], bad["last_lines"]) == (9, ["1"])
    assert (slow["exit_status"], slow["note"], slow["last_lines"]) == (124, "ran out of time", ["began"])
    assert (tmp_path / "logs" / "bad.log").read_text() == "1\n"


def test_the_commands_can_be_run() -> None:
    tests = list(commands.pytest_command().arguments)
    assert tests[tests.index("--device") + 1] == "cuda"
    assert {f"tests/test_{op}.py" for op in ops.__all__} == set(commands.SANITIZED_FILES)
    # What follows compute-sanitizer's options is pytest's command line: it selects tests of every op.
    for number, tool in enumerate(commands.SANITIZERS):
        arguments = commands.sanitizer_command(number, tool).arguments
        assert list(arguments[:3]) == ["compute-sanitizer", "--tool", tool]
    arguments = list(arguments[arguments.index(sys.executable) :])
    arguments[arguments.index("cuda")] = "cpu"
    result = subprocess.run([*arguments, "--collect-only"], cwd=commands.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    for path in commands.SANITIZED_FILES:
        assert path in result.stdout


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
    assert commands.reports_of_charlm(log.replace("at void charlm::cuda", "at void other::cuda")) == 0


@pytest.mark.parametrize(("errors_in", "exit_status"), [("charlm", 9), ("at", 0)])
def test_errors_of_others_are_not_ours(
    errors_in: str, exit_status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands.shutil, "which", lambda name: f"/usr/bin/{name}")

    def run(given: dict[str, commands.Command], limit: float, logs: Path) -> Entry:
        assert list(given) == ["memcheck", "racecheck", "synccheck", "initcheck"]
        (tmp_path / "initcheck.log").write_text(f"=========     at void {errors_in}::kernel()+0x60\n")
        return {"commands": {name: {"exit_status": 9 * (name == "initcheck")} for name in given}}

    monkeypatch.setattr(commands, "run", run)
    (task,) = commands.sanitizer_tasks(tmp_path)
    assert task.run()["commands"]["initcheck"]["exit_status"] == exit_status


def test_without_compute_sanitizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.shutil, "which", lambda name: None)
    (task,) = commands.sanitizer_tasks(Path())
    assert task.run() == {"skipped": "compute-sanitizer is not installed"}


@pytest.mark.parametrize(("seconds", "summary"), [("0", "0 of 3 tests fitted"), ("60", "3 of 3 tests fitted")])
def test_as_many_tests_as_fit(seconds: str, summary: str, tmp_path: Path) -> None:
    path = tmp_path / "test_three.py"
    path.write_text("import pytest\n\n@pytest.mark.parametrize('x', range(3))\ndef test(x):\n    assert x < 3\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.as_many_as_fit", "-p", "no:cacheprovider"]
    command += [f"--seconds={seconds}", f"--rootdir={tmp_path}", str(path)]
    result = subprocess.run(command, cwd=commands.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{summary} into {seconds} s" in result.stdout
