"""Runs a function in several processes that form a process group."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

# Nothing here takes a tenth of it; without it a lost process would hang the tests.
TIMEOUT_SECONDS = 120

Worker = Callable[[Path], dict[str, Any]]


def run(worker: Worker, size: int, folder: Path) -> list[dict[str, Any]]:
    """What `worker(folder)` returns in each of `size` new processes of one gloo group, by rank.

    The processes meet in a file, so that any number of groups can exist at a time. An error in one fails all. They are
    forks of one that has no threads and did nothing but import torch, which would take each longer than its work.
    """
    multiprocessing.set_forkserver_preload(["torch.distributed.tensor"])
    context = torch.multiprocessing.start_processes(
        _enter, (worker, size, folder), nprocs=size, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < deadline, f"{worker.__name__} has not ended after {TIMEOUT_SECONDS} s"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{size}.{rank}.pt", weights_only=False) for rank in range(size)]


def run_once(worker: Worker, size: int, factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """As `run`, but once for all processes of pytest-xdist, which would each start processes of their own."""
    root = factory.getbasetemp()
    folder = (
        root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    ) / f"{worker.__module__}.{worker.__name__}.{size}"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "failed").exists():
            pytest.fail((folder / "failed").read_text())
        if (folder / "done").exists():
            return [torch.load(folder / f"{size}.{rank}.pt", weights_only=False) for rank in range(size)]
        try:
            results = run(worker, size, folder)
        except BaseException:
            (folder / "failed").write_text(traceback.format_exc())
            raise
        (folder / "done").touch()
        return results


def _enter(rank: int, worker: Worker, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous.{size}", rank=rank, world_size=size)
    torch.save(worker(folder), folder / f"{size}.{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
