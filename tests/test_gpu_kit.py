"""scripts/gpu_kit.py: what is taken along to a machine with a GPU but without a compiler, and what runs there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu_kit


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run instead of compiling and fetching, which leaves what these would."""
    ran: list[list[str]] = []
    run = subprocess.run

    def record(command: list[str], **options: Any) -> Any:
        if "-o" not in command and "pip" not in command:
            return run(command, **options)
        ran.append(command)
        if "-o" in command:
            Path(command[-1]).write_bytes(b"GLIBC_2.4 GLIBC_2.17 GLIBCXX_3.4.29 GLIBC_2.9")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu_kit.subprocess, "run", record)
    monkeypatch.setattr(gpu_kit._C, "build_info", lambda: {"cuda": "sm_90"})
    monkeypatch.setattr(gpu_kit.environment, "commit", lambda: "abc123")
    return ran


def test_the_kit_has_what_is_lacking(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = tmp_path / "gpu-kit"
    (kit / "charlm").mkdir(parents=True)
    (kit / "charlm" / "_text.of-another.so").touch()
    gpu_kit.main(["--out", str(kit), "--packages", "one", "two"])
    compiled = f"_text{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert sorted(path.name for path in (kit / "charlm").iterdir()) == sorted(
        [Path(gpu_kit._C.__file__).name, compiled]
    )
    compiler, pip = commands
    assert f"-I{sysconfig.get_path('include')}" in compiler
    assert sum(argument.endswith(".cpp") for argument in compiler) == len(list(gpu_kit.ROOT.glob("csrc/text/*.cpp")))
    assert pip[:4] == [sys.executable, "-m", "pip", "install"]
    assert pip[-4:] == ["--target", str(kit / "site"), "one", "two"]
    said = capsys.readouterr().out
    assert compiled in said
    assert "bash gpu-kit/run.sh" in said

    # There: python3 is the one that finds torch, and says here what it was called with.
    (tmp_path / "charlm").mkdir()
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text('#!/bin/sh\necho "$@"\necho "$PYTHONPATH"\n')
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"

    def run(**environment: str) -> list[str]:
        command = [str(shutil.which("bash")), str(kit / "run.sh"), "--steps", "tests"]
        environment |= {"PATH": path, "PYTHONPATH": "/elsewhere"}
        result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=True)
        return result.stdout.splitlines()

    assert run() == ["-m benchmarks.gpu --commit abc123 --steps tests", f"{tmp_path}:{kit}/site:/elsewhere"]
    assert run(OUT="/what comes back")[0] == "-m benchmarks.gpu --commit abc123 --out /what comes back --steps tests"
    assert (tmp_path / "charlm" / compiled).is_file()


def test_newest_versions_that_are_needed(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"\0GLIBC_2.4\0GLIBC_2.17\0GLIBCXX_3.4.9\0GLIBC_PRIVATE\0")
    (tmp_path / "b.so").write_bytes(b"\0GLIBC_2.9\0GLIBCXX_3.4.29\0")
    assert gpu_kit.needed_libraries(tmp_path) == ["GLIBC 2.17", "GLIBCXX 3.4.29"]


def test_without_kernels_there_is_nothing_to_take_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_kit._C, "build_info", lambda: {"cuda": None})
    with pytest.raises(SystemExit, match="charlm was built without kernels for GPUs: build it where nvcc is"):
        gpu_kit.main(["--out", str(tmp_path / "gpu-kit")])
    assert not (tmp_path / "gpu-kit").exists()
