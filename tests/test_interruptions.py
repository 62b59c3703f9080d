"""Ctrl-C, SIGTERM and kill -9 at any moment: what is resumed ends in the very bytes of a run that never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL_MLP, CommandLine

import charlm
from charlm import Trainer, TrainingConfig, checkpoint, interrupts, training_run

pytestmark = pytest.mark.usefixtures("usual_signals")

FILES = {"config.json", "model.safetensors", "optimizer.safetensors", "metrics.jsonl"}
# Records every 3 steps, checkpoints every 4: both are interrupted at, before and after their borders.
RECORDS, OPTIONS = 4, (*SMALL_MLP, "--momentum", 0.9, "--steps", 13, "--checkpoint-every", 4, "--quiet")


SWEEP = ("--learning-rate", "0.05,0.1,1e30,0.2", "--hidden-dim", "3,4", "--halving", 2)


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[str]]:
    """Raises a signal at one of the moments of a run: before or after a step, a measurement, a record, a save."""
    passed: list[str] = []
    at, signum = 0, 0

    def point(name: str) -> None:
        passed.append(name)
        if len(passed) == at:
            signal.raise_signal(signum)

    def watched(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            point(f"before {name}")
            result = function(*arguments, **options)
            point(f"after {name}")
            return result

        monkeypatch.setattr(owner, name, call)

    def arm(at_point: int, with_signal: int) -> list[str]:
        nonlocal at, signum
        passed.clear()
        at, signum = at_point, with_signal
        return passed

    monkeypatch.setattr("charlm.trainer._CHUNK_SECONDS", 0.0)  # every step is a chunk of its own
    monkeypatch.setattr(training_run, "_RECORDS", RECORDS)
    for owner, name in [(Trainer, "_run_chunk"), (Trainer, "evaluate"), (checkpoint, "append_metrics")]:
        watched(owner, name)
    watched(checkpoint, "save")
    watched(os, "rename")
    return arm


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_no_record_is_lost_wherever_a_run_is_interrupted(
    run_charlm: CommandLine, names: Path, points: Callable[[int, int], list[str]], signum: int, code: int
) -> None:
    passed = points(0, 0)
    run_charlm.output("train", names, *OPTIONS, "--out", "whole")
    count, whole = len(passed), contents(Path("whole"))
    assert whole.keys() == FILES
    assert [record["step"] for record in checkpoint.read_metrics("whole")] == [3, 4, 6, 8, 9, 12, 13]
    assert count > 60
    # Those of Ctrl-C are all tried; the others, which are handled as it is, at some moments.
    for at in range(1, count + 1, 1 if signum == signal.SIGINT else 7):
        run = Path(f"run{at}")
        passed = points(at, signum)
        result = run_charlm("train", names, *OPTIONS, "--out", run)
        where = f"{passed[at - 1]}, moment {at}: {result.err}"
        assert result.code == code, where
        points(0, 0)
        if run.exists():
            run_charlm.output("train", "--resume", run, "--checkpoint-every", 4, "--quiet")
        else:
            # Before the first save there is nothing, rather than half of something.
            assert at <= 6, where
            run_charlm.output("train", names, *OPTIONS, "--out", run)
        assert contents(run) == whole, where


def test_a_run_interrupted_again_and_again_is_the_same(
    run_charlm: CommandLine, names: Path, points: Callable[[int, int], list[str]]
) -> None:
    points(0, 0)
    run_charlm.output("train", names, *OPTIONS, "--out", "whole")
    run_charlm.output("train", names, *OPTIONS, "--out", "run", "--steps", 1)
    codes = []
    for at in (1, 2, 3, 4, 5, 6, 1, 2, 1, 2, 8, 2, 2, 2, 10**9):
        points(at, signal.SIGINT)
        codes.append(run_charlm("train", "--resume", "run", "--steps", 13, "--checkpoint-every", 4, "--quiet").code)
    assert codes[-1] == 0
    assert codes.count(130) >= 8
    # The first record is that of a run of one step.
    records, whole = (checkpoint.read_metrics(run) for run in ("run", "whole"))
    assert [record["step"] for record in records] == [1, *(record["step"] for record in whole)]
    assert records[2:] == whole[1:]
    assert contents(Path("run"))["model.safetensors"] == contents(Path("whole"))["model.safetensors"]


def test_sigterm_before_the_first_step_leaves_nothing(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load_data", "create_model", "create_trainer"):
        function = getattr(TrainingConfig, name)

        def terminated(*arguments: Any, function: Any = function, **keywords: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return function(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingConfig, name, terminated)
            for out in ([], ["--out", "deep/er/run"]):
                assert run_charlm("train", names, *SMALL_MLP, *out).code == 143
                assert [path.name for path in Path().iterdir()] == [names.name]


def test_signals_that_are_ignored_stay_ignored(run_charlm: CommandLine, names: Path) -> None:
    """As `nohup` has it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupts.termination_as_interrupt():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with interrupts.deferred_interrupt():
            signal.raise_signal(signal.SIGHUP)
        with pytest.raises(interrupts.Terminated), interrupts.deferred_interrupt():
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("command", "more"), [("train", ()), ("sweep", SWEEP)], ids=["train", "sweep"])
def test_a_process_that_is_killed_anywhere_loses_nothing_but_time(
    names: Path, tmp_path: Path, command: str, more: tuple[object, ...]
) -> None:
    """kill -9 at one in a few steps of training and of what is done to files, in processes forked by kill_points.py."""
    path = os.pathsep.join([str(Path(charlm.__file__).parent.parent), str(Path(__file__).parent)])
    arguments = [command, str(names), *map(str, (*OPTIONS, *more))]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_points.py")), *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    runs = sorted(tmp_path.glob("run*"))
    assert len(runs) >= 20
    whole = contents(tmp_path / "whole")
    for run in runs:
        assert contents(run) == whole, run
