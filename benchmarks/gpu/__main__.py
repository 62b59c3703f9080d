"""`python -m benchmarks.gpu`: everything that takes a GPU, in parts, into `results/<gpu>.json` and a table beside it.

    ceilings              what this GPU does at best: a copy, a write, products of matrices
    tests                 the tests of the ops, on the GPU
    sanitizer             some of them under compute-sanitizer: memcheck, racecheck, synccheck, initcheck
    cross_entropy, linear_cross_entropy, embedding_linear, mlp_cross_entropy
                          the op against eager PyTorch, torch.compile, and Liger, quack and CCE where installed
    training              whole training steps by each backend

What the file already has for this commit is not done again, so a run that was cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks.gpu import (
    ceilings,
    commands,
    cross_entropy,
    embedding_linear,
    linear_cross_entropy,
    measure,
    mlp_cross_entropy,
    training,
)
from benchmarks.gpu.measure import Task
from benchmarks.gpu.page import render
from benchmarks.gpu.results import Entry, Results, is_failure
from charlm import environment

Part = Callable[[], Iterator[Task]]

OURS = ("charlm", "ops")
# Of our results from eager's, beyond which something is wrong: bfloat16 rounds to 0.004.
MOST_DIFFERENCE = 0.02


def create_parts(logs: Path) -> dict[str, Part]:
    """All parts, in the order in which they run; commands write to a folder."""
    return {
        "ceilings": ceilings.tasks,
        "tests": partial(commands.test_tasks, logs),
        "sanitizer": partial(commands.sanitizer_tasks, logs),
        "cross_entropy": cross_entropy.tasks,
        "linear_cross_entropy": linear_cross_entropy.tasks,
        "embedding_linear": embedding_linear.tasks,
        "mlp_cross_entropy": mlp_cross_entropy.tasks,
        "training": training.tasks,
    }


class BrokenDeviceError(RuntimeError):
    """The process can use the GPU no more; a new one can."""


def run_parts(results: Results, parts: Sequence[str], table: Mapping[str, Part], deadline: float) -> list[str]:
    """Does what the results lack; returns the names of what was not begun before the deadline."""
    left = []
    for part in parts:
        for task in table[part]():
            if results.has(part, task.name):
                continue
            if time.monotonic() > deadline:
                left.append(f"{part}: {task.name}")
                continue
            print(f"{part}: {task.name} ...", end=" ", flush=True)
            results.begin(part, task.name, task.facts)
            try:
                entry = attempt(task)
            except BaseException:  # Ctrl-C, or SIGTERM: another time
                results.forget(part, task.name)
                raise
            results.put(part, task.name, entry)
            print(entry.get("error", "done"), flush=True)
            if measure.is_broken():
                raise BrokenDeviceError
            measure.release_memory()
    return left


def attempt(task: Task) -> Entry:
    """The entry of a task; of one that fails the first line of why, as it must not end the run."""
    started = time.monotonic()
    try:
        measured = task.run()
    except ImportError as error:
        measured = {"error": f"not installed: {error}"}
    except Exception as error:
        measured = {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
    return {**task.facts, **measured, "took_s": round(time.monotonic() - started, 1)}


def failures(results: Mapping[str, Any]) -> list[str]:
    """The tasks of ours that failed: what an opponent cannot do is recorded, and no failure."""
    return [
        f"{part}: {name}"
        for part, entries in results["parts"].items()
        for name, entry in entries.items()
        if entry.get("implementation", OURS[0]) in OURS
        and (is_failure(entry) or entry.get("difference", 0.0) > MOST_DIFFERENCE)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(create_parts(Path()))
    parser.add_argument("--parts", nargs="*", choices=names, default=names, help="which to run (all)")
    parser.add_argument(
        "--out", type=Path, default=commands.ROOT / "benchmarks" / "results", help="of results and logs"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing further is begun (9)")
    parser.add_argument("--retry", action="store_true", help="do again what failed")
    parser.add_argument("--commit", default=environment.commit(), help="of the sources, where git does not know")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    deadline = time.monotonic() + 60 * options.minutes
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device: run this where torch finds a GPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    gpu = torch.cuda.get_device_name()
    facts = {
        "gpu": gpu,
        "commit": options.commit,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": environment.versions(),
        "cuda": torch.version.cuda,
    }
    logs = options.out / "logs"
    path = options.out / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"
    results = Results(path, facts, retry=options.retry)
    try:
        left = run_parts(results, options.parts, create_parts(logs), deadline)
    except BrokenDeviceError:
        _start_again(given, deadline)
    finally:
        path.with_suffix(".md").write_text(render(results.data))
    print(render(results.data))
    messages = [f"failed: {name}" for name in failures(results.data)]
    messages += [f"no time for: {name}" for name in left]
    if messages:
        sys.exit("\n".join([*messages, f"see {path} and {logs}; the same command goes on where this ended"]))


def _start_again(given: Sequence[str], deadline: float) -> NoReturn:
    """Goes on in a new process, in the time that is left."""
    kept = [argument for argument in given if argument != "--retry"]
    minutes = f"--minutes={(deadline - time.monotonic()) / 60:.2f}"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *kept, minutes])


if __name__ == "__main__":
    main()
