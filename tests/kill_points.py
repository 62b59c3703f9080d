"""Kills trainings with SIGKILL, each at another point, and resumes them: `python kill_points.py COMMAND OPTION...`.

The command is `train` or `sweep`. The uninterrupted training is left in `whole`, the others in `run1`, `run6`, ...
Torch is imported once, as every training but the first is a fork of this process.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import typer

from charlm import Trainer, training_run
from charlm.cli import main

# Of so many points one is to be killed at.
STRIDES = {"train": 5, "sweep": 7}
# What makes a folder one that can be resumed.
FILES = {"train": "config.json", "sweep": "sweep.json"}
RECORDS = 4


def count_points(killed_at: int) -> None:
    """Kills this process at the `killed_at`-th step of training or call that changes or syncs the disk."""
    calls = 0

    def watched(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        setattr(owner, name, call)

    for name in ("open", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir"):
        watched(os, name)
    watched(Trainer, "_run_chunk")


def charlm_in_a_fork(*arguments: str, killed_at: int = 0) -> int:
    """Runs a command; returns its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            count_points(killed_at)
            code = main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(command: str, options: list[str]) -> None:
    training_run._RECORDS = RECORDS
    # In this process: what torch imports and sets up at its first steps, and typer makes, all forks then have. Threads
    # they would not.
    typer.main.get_command = functools.cache(typer.main.get_command)
    torch.set_num_threads(1)
    assert main([command, *options, "--out", "whole"]) == 0
    killed_at = 1
    while True:
        run = f"run{killed_at}"
        code = charlm_in_a_fork(command, *options, "--out", run, killed_at=killed_at)
        if code == 0:
            return
        assert code == -signal.SIGKILL, f"{run}: exit code {code}"
        # Killed once more while it is resumed, then to its end; without a checkpoint it starts anew.
        for again_at in (killed_at // 2 + 1, 0):
            has_run = Path(run, FILES[command]).exists() or Path(run, ".saved").exists()
            every = options[options.index("--checkpoint-every") + 1]
            resumed = ["--resume", run, "--checkpoint-every", every, "--quiet"] if has_run else [*options, "--out", run]
            code = charlm_in_a_fork(command, *resumed, killed_at=again_at)
            assert code in (0, -signal.SIGKILL), f"{run}: exit code {code}"
        assert code == 0
        killed_at += STRIDES[command]


if __name__ == "__main__":
    kill_everywhere(sys.argv[1], sys.argv[2:])
