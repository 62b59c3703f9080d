"""`python -m benchmarks.gpu`: all that a GPU is asked, in one call of ten minutes, into `results/<gpu>.json`.

    machine    what the GPU and the software are
    smoke      every op in every dtype against float64, twice, on a side stream, in a CUDA graph
    risky      what may ruin a device: limits of launches, misaligned storage, bad numbers, more than 2^31 elements
    ceilings   what the GPU does at best: a copy, a write, products of matrices
    training   times of training steps by charlm and PyTorch, many models at once, and the time to a loss
    charlm     times of the ops, beside eager PyTorch
    ncu        six kernels under Nsight Compute
    tests      the tests of the ops
    sanitizer  some of them under compute-sanitizer: memcheck, racecheck, synccheck, initcheck
    peers      times of Liger, CCE and quack, where they are installed
    compile    times of torch.compile, in what is left

A step has processes of its own and a limit, at which they are killed. What it did by then is kept, as every result is
written at once; what its limit cut off is done before the last step, as far as there is time. What the file already has
for this commit is not done again, so a run that was cut short goes on where it was. This process never touches the GPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.gpu import entries, plan
from benchmarks.gpu.jobs import START, Name, Record, worker_command
from benchmarks.gpu.logs import Logs
from benchmarks.gpu.processes import ROOT, Command, complete, run
from benchmarks.gpu.results import Results, failures
from benchmarks.gpu.steps import STEPS, Step, TaskStep
from charlm import environment

_LIST_SECONDS = 60.0  # importing torch from a disk that has never been read
_ASK_SECONDS = 30.0
_REPORT_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--steps", nargs="*", choices=names, default=names, help="which to run (all)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of what is written")
    parser.add_argument("--minutes", type=float, default=9.25, help="after which everything ends (9.25)")
    parser.add_argument("--retry", action="store_true", help="do again what failed")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and how long it may take")
    parser.add_argument("--commit", default=environment.commit(), help="of the sources, where git does not know")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    steps = [step for step in STEPS if step.name in options.steps]
    if options.dry_run:
        print(plan.describe(steps, list_tasks(steps)["tasks"], 60 * options.minutes))
        return
    gpu, driver = find_gpu()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    # A core of a process that has mapped a GPU's memory takes long to write, and is of no use here.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    described = list_tasks(steps)
    facts = {
        "gpu": gpu,
        "driver": driver,
        "commit": options.commit,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": described["versions"],
        "cuda": described["cuda"],
        "machine": environment.machine(),
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *given]),
    }
    path = options.out / f"{entries.slug(gpu)}.json"
    try:
        left = measure(steps, described["tasks"], path, facts, started + 60 * options.minutes, retry=options.retry)
    finally:  # also where it was told to stop
        write_report(path)
    failed = failures(json.loads(path.read_text()))
    messages = [f"failed: {name}" for name in failed] + [f"no time for: {': '.join(name)}" for name in left]
    if messages:
        sys.exit("\n".join([*messages, f"see {path} and logs.tar.gz; the same command goes on where this ended"]))


def measure(
    steps: Sequence[Step],
    tasks: Mapping[str, Sequence[Name]],
    path: Path,
    facts: Mapping[str, Any],
    deadline: float,
    *,
    retry: bool,
) -> list[Name]:
    """Does what the results lack, until a time of the monotonic clock; returns what was not done."""
    results = Results(path, facts, retry=retry)
    results.save()
    logs = Logs(path.parent / "logs.tar.gz", keeps=results.goes_on)
    began = time.monotonic()

    def say(text: str) -> None:
        line = f"{time.monotonic() - began:6.1f} s  {text}"
        print(line, flush=True)
        with (logs.folder / "run.log").open("a") as log:
            print(line, file=log)

    record = Record(results, logs.folder, say)

    def left_of(step: Step) -> list[Name]:
        return [name for name in tasks[step.name] if not results.has(*name) or name in record.cut]

    def run_step(step: Step, seconds: float) -> None:
        for part, name in [(part, name) for part, done in results.data["parts"].items() for name in done]:
            if name == f"{step.name}: {START}":
                results.forget(part, name)
        names = left_of(step)
        record.once_more(names)
        say(f"{step.name}: {len(names)} to do in at most {seconds:.0f} s")
        run(step.jobs(names, record), time.monotonic() + seconds, at_once=step.at_once)
        logs.pack()

    try:
        run_steps(steps, left_of, run_step, deadline)
    finally:
        logs.close()
    return [name for step in steps for name in left_of(step)]


def run_steps(
    steps: Sequence[Step],
    left_of: Callable[[Step], Sequence[Name]],
    run_step: Callable[[Step, float], None],
    deadline: float,
) -> None:
    """Runs each step for its time, and what is left of them once more before the one that has no limit."""
    limited = [step for step in steps if step.seconds < float("inf")]
    for step in [*limited, *limited, *(step for step in steps if step not in limited)]:
        seconds = min(step.seconds, deadline - time.monotonic())
        if seconds > 0 and left_of(step):
            run_step(step, seconds)


def find_gpu() -> tuple[str, str]:
    """Its name and the version of its driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        sys.exit("there is no GPU: nvidia-smi is not installed")
    status, text = complete(Command(query), _ASK_SECONDS)
    if status != 0 or ", " not in text:
        sys.exit(f"there is no GPU: {text.strip() or 'nvidia-smi does not answer'}")
    name, driver = text.splitlines()[0].rsplit(", ", 1)
    return name, driver


def list_tasks(steps: Sequence[Step]) -> dict[str, Any]:
    """The versions, and the names of the tasks by step. A process of its own imports torch for it."""
    status, text = complete(worker_command("--list"), _LIST_SECONDS)
    if status != 0:
        sys.exit(f"what there is to do cannot be listed: {text.strip() or 'that took too long'}")
    listed: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    tasks = {step: [(part, name) for part, name in names] for step, names in listed["tasks"].items()}
    tasks |= {step.name: step.names() for step in steps if not isinstance(step, TaskStep)}
    return {**listed, "tasks": tasks}


def write_report(path: Path) -> None:
    """The page and the figures. A process of its own, as nothing that drawing meets may cost what was measured."""
    status, text = complete(
        Command([sys.executable, "-m", "benchmarks.gpu.page", str(path.resolve())]), _REPORT_SECONDS
    )
    if status != 0:
        print(f"not all of the page and its figures could be written: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
